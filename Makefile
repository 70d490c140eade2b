# What there is to do here: "make demo" and "make test" are enough to begin with.
# CONTRIBUTING.md has more.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X ruapost.Version=$(VERSION)"
BIN     := bin

# The race detector needs a C compiler.
RACE := $(if $(shell command -v $(CC)),-race)

# Extra flags of "go test", as in "make test TESTFLAGS=-v".
TESTFLAGS :=

# "require" runs the tests with real Postfixes and fails if they cannot be run;
# otherwise they skip themselves where they cannot. Root on Debian can run them.
RUAPOST_E2E ?= $(shell [ "$$(id -u)" = 0 ] && [ -e /etc/debian_version ] && echo require)
export RUAPOST_E2E

# How long "make fuzz" tries each parser.
FUZZTIME := 30s

# Linters are run as they are, without a part in go.mod.
GOFUMPT     := go run mvdan.cc/gofumpt@v0.12.0
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build container deb demo test lint fuzz bench

build:
	$(GOBUILD) -o $(BIN)/ruapost-milter ./cmd/milter
	$(GOBUILD) -o $(BIN)/ruapost-tlspolicy ./cmd/tlspolicy
	$(GOBUILD) -o $(BIN)/ruapost-reporter ./cmd/reporter

# The image of docs/container.md, with the certificate authorities of this host.
BUILDER         := $(firstword $(foreach b,buildah podman docker,$(if $(shell command -v $(b)),$(b))))
CA_CERTIFICATES := /etc/ssl/certs/ca-certificates.crt

container: build
	$(if $(BUILDER),,$(error making the image takes buildah, podman or docker))
	rm -rf $(BIN)/image
	mkdir $(BIN)/image
	cp $(BIN)/ruapost-* contrib/container/passwd contrib/container/group LICENSE $(BIN)/image/
	cp $(CA_CERTIFICATES) $(BIN)/image/ca-certificates.crt
	$(BUILDER) build -f contrib/container/Containerfile --build-arg VERSION=$(VERSION) -t localhost/ruapost $(BIN)/image
	rm -rf $(BIN)/image

# The Debian package of docs/package.md, beside the programs. GOARCH=arm64 makes it for that.
deb: build
	contrib/debian/build $(BIN)

demo: build
	go run ./demo

test:
	go vet ./...
ifeq ($(RUAPOST_E2E),require)
	e2e/setup.sh
else
	@echo "The tests with real Postfixes are skipped: they need root on Debian."
endif
	$(if $(RACE),,@echo "There is no C compiler: testing without the race detector.")
	go test $(RACE) -timeout 15m $(TESTFLAGS) ./...

lint:
	@files=$$($(GOFUMPT) -l .) && if [ -n "$$files" ]; then echo "not formatted by gofumpt:" $$files; exit 1; fi
	go vet ./...
	$(STATICCHECK) ./...

# Go fuzzes one function at a time.
fuzz:
	@grep -rEo '^func Fuzz[A-Za-z0-9]+' --include='*_test.go' . | sed 's,/[^/]*:func , ,' | \
	while read -r package function; do \
		echo "$$package $$function"; \
		go test -run '^$$' -fuzz "^$$function\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
	done

bench:
	go test -run '^$$' -bench . -benchmem $$(grep -rl '^func Benchmark' --include='*_test.go' . | xargs -n 1 dirname | sort -u)
