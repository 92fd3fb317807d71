# What people do with this project. For GNU make 3.81 (macOS) and later.

.DEFAULT_GOAL := help

# More arguments for the command behind `make run` and `make test`, as in: make test ARGS='--test gatepass login'
ARGS ?=

# One cargo at a time, also under `make -j`.
.NOTPARALLEL:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## Build and start the service, with a Postgres of its own under .gatepass/
	@scripts/ensure-postgres
	cargo run --locked -- serve $(ARGS)

.PHONY: test
test: ## Run all tests, against a throw-away Postgres
	python=$$(scripts/other-libraries) && export GATEPASS_TEST_PYTHON="$$python" && \
	envoy=$$(scripts/test-proxy envoy) && export GATEPASS_TEST_ENVOY="$$envoy" && \
	traefik=$$(scripts/test-proxy traefik) && export GATEPASS_TEST_TRAEFIK="$$traefik" && \
	pgbouncer=$$(scripts/test-pgbouncer) && export GATEPASS_TEST_PGBOUNCER="$$pgbouncer" && \
	pgbouncer=$$(scripts/test-pgbouncer prepared) && export GATEPASS_TEST_PGBOUNCER_PREPARED="$$pgbouncer" && \
	scripts/with-postgres cargo test --locked --all-features $(ARGS)

# How long each target runs.
FUZZ_SECONDS ?= 60

.PHONY: fuzz
fuzz: ## Fuzz the verifier of each format, FUZZ_SECONDS each
	FUZZ_SECONDS='$(FUZZ_SECONDS)' scripts/fuzz

.PHONY: bench-password
bench-password: ## Measure password hashes, by who computes them, and what they cost others; about a minute
	cargo run --release --locked --manifest-path benches/Cargo.toml --bin password

.PHONY: drill
drill: ## Replace keys under load and race for sessions, for some minutes: the long forms of some tests
	GATEPASS_DRILL=full scripts/with-postgres cargo test --locked --all-features --test gatepass \
	  -- --nocapture --test-threads=1 plans:: rotation_drill:: session_model:: session_races:: million every_search_for_users storm::

.PHONY: timing
timing: ## Compare the times of answers that must not tell users apart, for a few minutes
	GATEPASS_DRILL=full scripts/with-postgres cargo test --locked --all-features --test gatepass timing \
	  -- --nocapture --test-threads 1

.PHONY: fmt
fmt: ## Format the code
	cargo fmt
	cargo fmt --manifest-path fuzz/Cargo.toml
	cargo fmt --manifest-path benches/Cargo.toml

.PHONY: lint
lint: lint-fmt lint-clippy lint-docs lint-migrations lint-kubernetes lint-shell ## Check format, clippy, documentation, migrations, manifests and shell scripts

.PHONY: lint-fmt
lint-fmt:
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path benches/Cargo.toml

# The second and third lines: other services build the verifier without the server, with and without a client.
.PHONY: lint-clippy
lint-clippy:
	cargo clippy --locked --all-targets --all-features -- -D warnings
	cargo clippy --locked --lib --no-default-features --features verify -- -D warnings
	cargo clippy --locked --lib --no-default-features --features remote -- -D warnings

.PHONY: lint-docs
lint-docs:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items --all-features

.PHONY: lint-migrations
lint-migrations:
	scripts/lint-migrations

.PHONY: lint-kubernetes
lint-kubernetes: ## Build the overlays of eks/ and check what comes out
	scripts/lint-kubernetes

.PHONY: lint-shell
lint-shell:
	@if command -v shellcheck >/dev/null; \
	then shellcheck -x $$(grep -lE '^#!.*[/ ](ba)?sh$$' scripts/* .ci/*) && echo 'shellcheck: ok'; \
	else echo 'shellcheck is not installed: the shell scripts were NOT checked'; fi

.PHONY: generated
generated: sqlx openapi app-env db_docs prometheus-rule ## Regenerate all files that are made from the code

.PHONY: sqlx
sqlx: ## Regenerate .sqlx, from the queries and the migrations
	scripts/sqlx-prepare

.PHONY: release-queries
release-queries: ## Record what this version asks of the database, which the next one's schema has to bear
	RECORD_RELEASE=1 scripts/with-postgres cargo test --locked --all-features --test gatepass \
	  released::what_the_release_before_asks_this_schema_answers

.PHONY: openapi
openapi: ## Regenerate docs/openapi.json
	@mkdir -p docs target
	cargo run --locked -- openapi > target/openapi.json
	mv target/openapi.json docs/openapi.json

.PHONY: db_docs
db_docs: ## Regenerate docs/schema.dbml and its picture, from the migrations
	scripts/db-docs

.PHONY: app-env
app-env: ## Regenerate app.env.example
	@mkdir -p target
	cargo run --locked -- config --example > target/app.env.example
	mv target/app.env.example app.env.example

.PHONY: prometheus-rule
prometheus-rule: ## Regenerate the PrometheusRule of eks/components/monitoring, from its rules.yaml
	scripts/prometheus-rule

.PHONY: check-generated
check-generated: ## Fail if a generated file does not match the code
	scripts/check-generated

.PHONY: clean
clean: ## Remove what was built; the development database in .gatepass/ stays
	cargo clean
