# The program with `--device cuda:0`: docker build -t pauc-cuda -f docker/cuda.Dockerfile .
#
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u)" pauc-cuda run recipe.ron --device cuda:0
#
# Nobody has built this file yet. docs/src/cuda.md lists the toolkits that dfdx compiles with, and the libraries that
# pauc loads.
FROM nvidia/cuda:12.4.1-devel-ubuntu22.04 AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl gcc libc6-dev \
    && curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.95.0
ENV PATH=/root/.cargo/bin:$PATH
# The oldest GPUs that the image is for: 80 is Ampere. The build of dfdx calls nvidia-smi, which a build has not.
ARG CUDA_COMPUTE_CAP=80
RUN command -v nvidia-smi || { printf '#!/bin/sh\n' >/usr/bin/nvidia-smi && chmod +x /usr/bin/nvidia-smi; }
WORKDIR /pauc
COPY . .
RUN cargo build --locked --profile wheel -p pauc-cli --features download,cuda

# With cuDNN, and with NVRTC, which compiles pauc's kernels.
FROM nvidia/cuda:12.4.1-cudnn-runtime-ubuntu22.04
COPY --from=build /pauc/target/wheel/pauc-cli /usr/local/bin/
COPY --from=build /pauc/LICENSE-MIT /pauc/LICENSE-APACHE /pauc/THIRD-PARTY.md /usr/local/share/doc/pauc/
RUN useradd --create-home --uid 1000 pauc
USER pauc
WORKDIR /work
ENTRYPOINT ["pauc-cli"]
CMD ["--help"]
