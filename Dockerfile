# The program on a CPU: docker build -t pauc .
#
#   docker run --rm -v "$PWD:/work" --user "$(id -u)" pauc run recipe.ron
FROM rust:1.95-bookworm AS build
WORKDIR /pauc
COPY . .
RUN cargo build --locked --profile wheel -p pauc-cli --features download

FROM debian:bookworm-slim
COPY --from=build /pauc/target/wheel/pauc-cli /usr/local/bin/
COPY --from=build /pauc/LICENSE-MIT /pauc/LICENSE-APACHE /pauc/THIRD-PARTY.md /usr/local/share/doc/pauc/
RUN pauc-cli man --out /usr/local/share/man/man1 \
    && useradd --create-home --uid 1000 pauc
USER pauc
WORKDIR /work
ENTRYPOINT ["pauc-cli"]
CMD ["--help"]
