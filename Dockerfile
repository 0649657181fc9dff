# One image for the Prefect server, the set-up and the workers. The CUDA libraries come with torch's wheels from
# PyPI; `--build-arg DEVICE=cpu` takes the wheels without them from PyTorch's own index.
FROM python:3.11.13-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY db db
COPY flows flows
COPY pipeline pipeline
COPY segcurate segcurate
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11.13-slim-bookworm
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NO_ALBUMENTATIONS_UPDATE=1 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    OMP_WAIT_POLICY=PASSIVE \
    HOME=/home/segcurate \
    PREFECT_HOME=/var/lib/prefect
ARG DEVICE=cuda
COPY configs/constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
RUN wheel="$(ls /tmp/wheels/segcurate-*.whl)" && \
    if [ "$DEVICE" = cpu ]; then \
        pip install --no-cache-dir --no-deps --constraint /tmp/constraints.txt \
            --index-url https://download.pytorch.org/whl/cpu torch torchvision; \
    fi && \
    pip install --no-cache-dir --constraint /tmp/constraints.txt "${wheel}[postgres,s3,ray,cvat]" && \
    rm -r /tmp/wheels /tmp/constraints.txt && \
    useradd --uid 1000 --user-group --create-home segcurate && \
    install --directory --owner=segcurate --group=segcurate --mode=0777 \
        /var/lib/prefect /project /home/segcurate/.cache && \
    chmod 0777 /home/segcurate
USER 1000:1000
WORKDIR /project
CMD ["segcurate", "--help"]
