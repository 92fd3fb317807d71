ALTER TABLE clients DROP CONSTRAINT clients_times_in_range;
ALTER TABLE revocations DROP CONSTRAINT revocations_times_in_range;
ALTER TABLE sessions DROP CONSTRAINT sessions_times_in_range;
ALTER TABLE users DROP CONSTRAINT users_times_in_range;
