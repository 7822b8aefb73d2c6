# CPU:  docker build -t emoscribe .
# GPU:  docker build -t emoscribe --build-arg TORCH_INDEX= .      (the default torch has CUDA; run with --gpus all)
# Use:  docker run --rm -v "$PWD/runs:/app/runs" -v "$PWD/datasets:/app/datasets" emoscribe train
#       docker run --rm -v "$PWD/runs:/app/runs" -p 127.0.0.1:7860:7860 emoscribe serve pretrained_name=demo serve.host=0.0.0.0
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt
COPY . .
RUN useradd --create-home --uid 1000 user && mkdir -p runs datasets && chown user runs datasets
USER 1000
ENV PYTHONUNBUFFERED=1
EXPOSE 7860
ENTRYPOINT ["python", "-m", "emoscribe"]
CMD ["--help"]
