ALTER TABLE users VALIDATE CONSTRAINT users_times_in_range;
ALTER TABLE sessions VALIDATE CONSTRAINT sessions_times_in_range;
ALTER TABLE revocations VALIDATE CONSTRAINT revocations_times_in_range;
ALTER TABLE clients VALIDATE CONSTRAINT clients_times_in_range;
ALTER TABLE users VALIDATE CONSTRAINT users_roles_from_one;
ALTER TABLE revocations VALIDATE CONSTRAINT revocations_roles_from_one;
