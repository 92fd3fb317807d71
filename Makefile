# The tasks of this project. For GNU make 3.81 (macOS) and later.

.DEFAULT_GOAL := help

# Additional arguments for the command behind `make run`, `make test` and `make instructions`, as in:
# make test ARGS='--test gatepass login'
ARGS ?=

# Only one cargo at a time, even under `make -j`.
.NOTPARALLEL:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## Build and start the service, with a Postgres of its own under .gatepass/
	@scripts/ensure-postgres
	cargo run --locked -- serve $(ARGS)

# The name of the image, here and in the registry.
IMAGE ?= gatepass

# Additional arguments for its build, say on a machine whose builds need a mount with its certificates.
IMAGE_BUILD_ARGS ?=

# BUILDAH_FORMAT is for podman: its default image format has no place for a HEALTHCHECK.
.PHONY: image
image: ## Build the container image, as IMAGE, with docker or podman
	engine=$$(scripts/container-engine) && BUILDAH_FORMAT=docker $$engine build $(IMAGE_BUILD_ARGS) -t '$(IMAGE)' \
	  --build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)" \
	  --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" .

.PHONY: docker-run
docker-run: ## Run the image on port 8080, with DB_SOURCE and TOKEN_SYMMETRIC_KEY of the environment
	engine=$$(scripts/container-engine) && $$engine run --rm --read-only --cap-drop ALL \
	  --security-opt no-new-privileges -p 127.0.0.1:8080:8080 -e DB_SOURCE -e TOKEN_SYMMETRIC_KEY '$(IMAGE)'

.PHONY: test-image
test-image: ## Build the image, and test a login in a container that may do nothing else
	scripts/test-image

.PHONY: test-rotate-dev-db
test-rotate-dev-db: ## Replace a developers' database in an AWS that moto emulates
	scripts/test-rotate-dev-db

# The image that `make deploy` deploys; if empty, the running image stays.
DEPLOY_IMAGE ?=

.PHONY: deploy
deploy: ## Apply eks/overlays/OVERLAY with kubectl, wait until it runs, go back if it does not
	scripts/deploy '$(OVERLAY)' '$(DEPLOY_IMAGE)'

# Twice as many tests at once as there are cores: most of them wait for processes and the database.
.PHONY: test
test: ## Run all tests, against a throw-away Postgres
	python=$$(scripts/other-libraries) && export GATEPASS_TEST_PYTHON="$$python" && \
	envoy=$$(scripts/test-proxy envoy) && export GATEPASS_TEST_ENVOY="$$envoy" && \
	traefik=$$(scripts/test-proxy traefik) && export GATEPASS_TEST_TRAEFIK="$$traefik" && \
	pgbouncer=$$(scripts/test-pgbouncer) && export GATEPASS_TEST_PGBOUNCER="$$pgbouncer" && \
	pgbouncer=$$(scripts/test-pgbouncer prepared) && export GATEPASS_TEST_PGBOUNCER_PREPARED="$$pgbouncer" && \
	promtool=$$(scripts/promtool) && export GATEPASS_TEST_PROMTOOL="$$promtool" && \
	vectors=$$(scripts/paseto-vectors) && export PASETO_VECTORS="$$vectors" && \
	export RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$((2 * $$(getconf _NPROCESSORS_ONLN)))} && \
	scripts/with-postgres cargo test --locked --all-features $(ARGS)

# A Postgres in a container, for development; `make run` and the tests do not need it, since they start their own. It is
# published to this machine alone, with a password that everybody knows.
POSTGRES = gatepass-postgres
POSTGRES_IMAGE ?= docker.io/library/postgres:17

.PHONY: postgres
postgres: ## Start a Postgres in a container, on port 5432 of this machine
	engine=$$(scripts/container-engine) && $$engine run --name $(POSTGRES) -d -p 127.0.0.1:5432:5432 \
	  -e POSTGRES_USER=root -e POSTGRES_PASSWORD=secret '$(POSTGRES_IMAGE)'
	@echo 'Then: make createdb, and in app.env: DB_SOURCE=postgres://root:secret@localhost:5432/gatepass'

.PHONY: createdb
createdb: ## Create the database gatepass in that Postgres
	engine=$$(scripts/container-engine) && $$engine exec $(POSTGRES) createdb --username=root --owner=root gatepass

.PHONY: dropdb
dropdb: ## Drop that database
	engine=$$(scripts/container-engine) && $$engine exec $(POSTGRES) dropdb --username=root gatepass

# The database of app.env and the environment; if they name none, that of `make run`.
.PHONY: migrateup
migrateup: ## Apply the pending migrations to the database of app.env
	cargo run --quiet --locked -- migrate up

.PHONY: migrateup1
migrateup1: ## Apply the next migration
	cargo run --quiet --locked -- migrate up 1

.PHONY: migratedown
migratedown: ## Undo all migrations, and lose all data; asks first
	@printf 'All tables go, and what is in them. Really? [y/N] '; read -r answer && test "$$answer" = y
	cargo run --quiet --locked -- migrate down $$(ls migrations/*.up.sql | wc -l)

.PHONY: migratedown1
migratedown1: ## Undo the last migration
	cargo run --quiet --locked -- migrate down 1

.PHONY: new_migration
new_migration: ## Write an empty migration, called name=…
	@test -n '$(name)' || { echo 'make new_migration name=add_something' >&2; exit 2; }
	cargo run --quiet --locked -- migrate new '$(name)'

# Not committed, since the text depends on the version of pg_dump; docs/schema.dbml does not. The settings in app.env
# and the environment are for another database, and so are left out.
.PHONY: schema
schema: ## Print the schema as SQL, as pg_dump gives it after all migrations
	@cargo build --quiet --locked --bin gatepass
	@scripts/with-postgres sh -c 'env -i PATH="$$PATH" DB_SOURCE="$$DATABASE_URL" \
	  "$${CARGO_TARGET_DIR:-target}/debug/gatepass" --config /dev/null migrate up >&2 && \
	  "$$(scripts/ensure-postgres --print-bindir)/pg_dump" --schema-only --no-owner --exclude-table=_sqlx_migrations \
	  "$$DATABASE_URL"'

# How long each target runs.
FUZZ_SECONDS ?= 60

.PHONY: fuzz
fuzz: ## Fuzz the verifier of each format, FUZZ_SECONDS each
	FUZZ_SECONDS='$(FUZZ_SECONDS)' scripts/fuzz

# What to measure (`make bench ONLY=checks`), everything if empty. WRITE=1 writes the table to docs/benchmarks.md;
# SMOKE=1 only checks that everything works, in seconds.
ONLY ?=
WRITE ?=
SMOKE ?=
# A smoke run uses the profile of `make instructions`, so that CI builds only one of the two.
BENCH_PROFILE = $(if $(SMOKE),counted,release)
BENCH_CARGO = CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-target}" cargo run --locked --manifest-path benches/Cargo.toml

.PHONY: bench
bench: ## Measure the service beside what limits it; ONLY=… one section, WRITE=1 into docs/benchmarks.md
	cargo build --profile $(BENCH_PROFILE) --locked $(if $(SMOKE),,--all-features) --bin gatepass
	target=$$(cd "$${CARGO_TARGET_DIR:-target}" && pwd) && \
	PATH="$$(scripts/ensure-postgres --print-bindir):$$PATH:/usr/sbin" GATEPASS="$$target/$(BENCH_PROFILE)/gatepass" \
	  scripts/with-postgres --durable env $(BENCH_CARGO) --profile $(BENCH_PROFILE) --bin service -- \
	  $(ONLY) $(if $(WRITE),--write) $(if $(SMOKE),--smoke)

.PHONY: bench-password
bench-password: ## Measure password hashes by several implementations, and what they cost other work; about a minute
	$(BENCH_CARGO) --release --features others --bin password

.PHONY: instructions
instructions: ## Count the instructions of a request, with valgrind, and compare them with benches/instructions
	cargo build --profile counted --locked --bin gatepass
	scripts/with-postgres scripts/count-instructions $(ARGS)

.PHONY: drill
drill: ## Replace keys under load and race for sessions, for some minutes: the long forms of some tests
	GATEPASS_DRILL=full scripts/with-postgres cargo test --locked --all-features --test gatepass \
	  -- --nocapture --test-threads=1 plans:: rotation_drill:: session_model:: session_races:: import:: million every_search_for_users storm:: rolling_update:: \
	     failover:: remote_revocations:: a_notification_tells a_lost_notification

# How long the soak test runs, and its random seed, which every run prints.
SOAK_MINUTES ?= 10
SOAK_SEED ?=

.PHONY: soak
soak: ## Use three replicas for SOAK_MINUTES while they and Postgres are killed, and check that nothing is lost
	export SOAK_MINUTES='$(SOAK_MINUTES)' SOAK_SEED='$(SOAK_SEED)' && \
	scripts/with-postgres cargo test --locked --all-features --test gatepass soak:: -- --nocapture

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
lint: lint-fmt lint-clippy lint-docs lint-migrations lint-shell lint-image lint-workflows lint-monitoring lint-kubernetes ## Check code, documentation, migrations, scripts, workflows, alert rules and manifests

# rustfmt leaves comments alone: they are at most 120 columns wide, except tables.
.PHONY: lint-fmt
lint-fmt:
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path benches/Cargo.toml
	! LC_ALL=C.UTF-8 git grep -nE -e '^ *//' --and --not -e '^ *//[/!] \|' --and -e '^.{121}' -- '*.rs'

# The second line is a build without AWS. The last two are the verifier without the server, as other services build it,
# without and with the client.
.PHONY: lint-clippy
lint-clippy:
	cargo clippy --locked --all-targets --all-features -- -D warnings
	cargo clippy --locked --lib -- -D warnings
	cargo clippy --locked --lib --no-default-features --features verify -- -D warnings
	cargo clippy --locked --lib --no-default-features --features remote -- -D warnings

# Separate workspaces, which take minutes to compile dependencies of their own; so not in .ci/run.
.PHONY: lint-extra
lint-extra: ## Check the code of fuzz/ and benches/
	export CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-target}" && \
	cargo check --locked --manifest-path fuzz/Cargo.toml && \
	cargo check --locked --manifest-path benches/Cargo.toml --all-features

# The first line documents the crate as other services see it, without the server. The second line's pages stay.
.PHONY: lint-docs
lint-docs:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --no-default-features --features remote
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items --all-features

.PHONY: lint-migrations
lint-migrations:
	scripts/lint-migrations

.PHONY: lint-kubernetes
lint-kubernetes: ## Build the overlays of eks/ and check the result
	scripts/lint-kubernetes

# Takes less than a minute. scripts/promtool itself reports when there is no promtool.
.PHONY: lint-monitoring
lint-monitoring:
	@promtool=$$(scripts/promtool) && if [ -n "$$promtool" ]; then cd eks/components/monitoring && \
	"$$promtool" check rules rules.yaml && "$$promtool" test rules rules_test.yaml rules_day_test.yaml; fi

.PHONY: lint-shell
lint-shell:
	@if command -v shellcheck >/dev/null; \
	then shellcheck -x $$(grep -lE '^#!.*[/ ](ba)?sh$$' scripts/* .ci/*) && echo 'shellcheck: ok'; \
	else echo 'shellcheck is not installed: the shell scripts were NOT checked'; fi

.PHONY: lint-image
lint-image:
	scripts/checker hadolint Dockerfile devdata/Dockerfile
	@if docker compose version >/dev/null 2>&1; \
	then POSTGRES_PASSWORD=x TOKEN_SYMMETRIC_KEY=x docker compose -f compose.yaml config --quiet && echo 'compose.yaml: ok'; \
	else echo 'docker compose is not installed: whether it takes compose.yaml was NOT checked'; fi

.PHONY: lint-workflows
lint-workflows:
	scripts/checker yamllint --strict .
	scripts/checker zizmor --offline --no-progress --persona=pedantic .github

.PHONY: generated
generated: sqlx openapi app-env db_docs prometheus-rule ## Regenerate all files that are made from the code

.PHONY: sqlx
sqlx: ## Regenerate .sqlx, from the queries and the migrations
	scripts/sqlx-prepare

.PHONY: release-queries
release-queries: ## Record this version's queries, which must still work on the next version's schema
	RECORD_RELEASE=1 scripts/with-postgres cargo test --locked --all-features --test gatepass \
	  released::this_schema_answers_every_query_of_the_previous_release

# Builds what the tests have built already: alone, the binary would have other features of its dependencies.
TESTED_BINARY = cargo build --locked --all-features --test gatepass && "$${CARGO_TARGET_DIR:-target}/debug/gatepass"

# Replaces a file with the one under target/, if they differ: a newer file would make cargo build again.
replace = cmp -s target/$(notdir $(1)) $(1) || cp target/$(notdir $(1)) $(1)

.PHONY: openapi
openapi: ## Regenerate docs/openapi.json
	@mkdir -p docs target
	$(TESTED_BINARY) openapi > target/openapi.json
	$(call replace,docs/openapi.json)

.PHONY: db_docs
db_docs: ## Regenerate docs/schema.dbml and its picture, from the migrations
	scripts/db-docs

.PHONY: app-env
app-env: ## Regenerate app.env.example
	@mkdir -p target
	$(TESTED_BINARY) config --example > target/app.env.example
	$(call replace,app.env.example)

.PHONY: prometheus-rule
prometheus-rule: ## Regenerate the PrometheusRule of eks/components/monitoring, from its rules.yaml
	scripts/prometheus-rule

.PHONY: check-generated
check-generated: ## Fail if a generated file does not match the code
	scripts/check-generated

.PHONY: clean
clean: ## Remove what was built; the development database in .gatepass/ stays
	cargo clean
