# The proxy: HAProxy from Debian, in front of one service or several. Build: docker build -f docker/proxy.Dockerfile -t debut-proxy .
FROM docker.io/library/debian:bookworm-slim
LABEL org.opencontainers.image.title="Debut: proxy" \
      org.opencontainers.image.description="Hands requests to those replicas of the service that are ready." \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3008
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends haproxy \
 && rm -rf /var/lib/apt/lists/*
COPY docker/haproxy.cfg /etc/haproxy/debut.cfg
USER 65534:65534
EXPOSE 8000
STOPSIGNAL SIGUSR1
CMD ["haproxy", "-W", "-db", "-f", "/etc/haproxy/debut.cfg"]
