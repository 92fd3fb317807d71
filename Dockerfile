# The image of the service: the binary, with its migrations compiled in, on a base without a shell.
#
#   docker build -t gatepass .
#   docker run -e DB_SOURCE=… -e TOKEN_SYMMETRIC_KEY=… -p 8080:8080 gatepass

# Both bases are rebuilt under the same tag, with Debian's fixes. To pin them, append the digest to the tag,
# tag@sha256:…, as `docker buildx imagetools inspect IMAGE` prints it; Dependabot updates tag and digest together.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src

# Writes the list of crates into the binary, where `cargo audit bin` and image scanners look for it.
RUN cargo install --locked cargo-auditable@0.7.7

# The dependencies have a layer of their own, built around two empty source files. Only Cargo.toml, Cargo.lock and
# FEATURES invalidate it.
ARG FEATURES=server,aws
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
  && cargo auditable build --locked --release --bin gatepass --features "$FEATURES"

# Cargo compares modification times, and the real files are older than the empty ones were.
COPY . .
RUN touch src/lib.rs src/main.rs \
  && cargo auditable build --locked --release --bin gatepass --features "$FEATURES"

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/gatepass /usr/local/bin/gatepass

# As numbers, so that Kubernetes can see that it is not root.
USER 65532:65532
ENV ENVIRONMENT=production
EXPOSE 8080
# The first start may wait for migrations.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["/usr/local/bin/gatepass", "health"]
ENTRYPOINT ["/usr/local/bin/gatepass"]
CMD ["serve"]

# Last, since these differ with every commit.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gatepass" \
  org.opencontainers.image.description="A token authentication service" \
  org.opencontainers.image.licenses="MIT OR Apache-2.0" \
  org.opencontainers.image.version="$VERSION" \
  org.opencontainers.image.revision="$REVISION"
