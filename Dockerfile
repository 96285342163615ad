# Two ways to the same image:
#   docker build --target compiled .    compiles inside BUILD, runs on RUNTIME
#   make image                          takes bin/cairn made by `make build` (--target prebuilt);
#                                       pulls nothing, since RUNTIME is then scratch
ARG BUILD=golang:1.26
ARG RUNTIME=scratch

FROM ${RUNTIME} AS prebuilt
COPY bin/cairn /cairn
# A volume takes over the owner of the directory it covers: an empty one, ours.
COPY --chown=65532:65532 bin/volume /data
COPY --chown=65532:65532 bin/volume /config
USER 65532:65532
ENV XDG_CONFIG_HOME=/config CAIRN_SERVER=http://127.0.0.1:5000
# /data holds the store, /config its key and tokens: both must be volumes. A key
# that lived in the container's own layer would be gone with it.
VOLUME ["/data", "/config"]
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["/cairn", "health"]
ENTRYPOINT ["/cairn"]
# Inside the container every address must be listened on; who can reach them is
# decided where the port is published (-p 127.0.0.1:5000:5000 on one's own machine).
# Clients that come by another name than localhost need --host NAME.
CMD ["serve", "--data", "/data", "--listen", "0.0.0.0:5000", "--behind-proxy"]

FROM ${BUILD} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o /out/cairn ./cmd/cairn && mkdir /out/volume

FROM ${RUNTIME} AS compiled
COPY --from=build /out/cairn /cairn
COPY --from=build --chown=65532:65532 /out/volume /data
COPY --from=build --chown=65532:65532 /out/volume /config
USER 65532:65532
ENV XDG_CONFIG_HOME=/config CAIRN_SERVER=http://127.0.0.1:5000
VOLUME ["/data", "/config"]
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["/cairn", "health"]
ENTRYPOINT ["/cairn"]
CMD ["serve", "--data", "/data", "--listen", "0.0.0.0:5000", "--behind-proxy"]
