# zhx: one small daemon that is broker, process manager and watchdog of a board.
# `make help` lists what there is to make.
GO       ?= go
DESTDIR  ?=
PREFIX   ?= /usr/local
FUZZTIME ?= 60s
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOBUILD   = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X zhx/daemon.Version=$(VERSION) -X main.version=$(VERSION)'
# Not that of bin/, which may be for another machine.
COMPLETION = GOOS= GOARCH= CGO_ENABLED=0 $(GO) run ./cmd/zhxctl completion
PROGRAMS  = ./cmd/zhxd ./cmd/zhxctl ./cmd/zhx-demo

.PHONY: help build run test check arm fuzz bench install cross clean
.DEFAULT_GOAL := build

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## build zhxd, zhxctl and the demo client into bin/
	@mkdir -p bin
	$(GOBUILD) -o bin/ $(PROGRAMS)

run: build ## start zhxd in the foreground with two demo clients; ctrl-C ends it
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	PATH="$(CURDIR)/bin:$$PATH" XDG_RUNTIME_DIR="$$dir" bin/zhxd --config etc/demo.toml --run-dir "$$dir/zhx"

test: ## run all tests; needs Go alone
	$(GO) test ./...

check: ## gofmt, vet, staticcheck and all tests under the race detector
	@fmt=$$(gofmt -l cmd daemon ipc procman watchdog); test -z "$$fmt" || { echo "not gofmt-ed: $$fmt"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -race ./...

arm: ## test the bus as a 32-bit ARM program under qemu-user: what needs neither sock_diag nor its timing, which it does not emulate
	GOARCH=arm GOARM=7 $(GO) test -exec qemu-arm-static ./ipc/wire
	GOARCH=arm GOARM=7 $(GO) test -exec qemu-arm-static -run 'Fuzz|Levels|Both|Handshake|Requests|Hold|Handled|SentAgain|Topics|Presence|TakenOver|Policy|TestDescriptors|Malformed|Watchdog|Send$$' ./ipc/broker
	GOARCH=arm GOARM=7 $(GO) test -exec qemu-arm-static -run 'Conn|Packets|Addresses' ./ipc

fuzz: ## fuzz packets, frames, the handshake, notifications and the configuration, FUZZTIME each (60s)
	$(GO) test -run '^$$' -fuzz '^FuzzPacket$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./ipc/wire
	$(GO) test -run '^$$' -fuzz '^FuzzReader$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./ipc/broker
	$(GO) test -run '^$$' -fuzz '^FuzzFrame$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./ipc/wire
	$(GO) test -run '^$$' -fuzz '^FuzzFrames$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./ipc/broker
	$(GO) test -run '^$$' -fuzz '^FuzzHandshake$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./ipc/broker
	$(GO) test -run '^$$' -fuzz '^FuzzConfig$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./daemon/config
	$(GO) test -run '^$$' -fuzz '^FuzzNotify$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./procman/notify

bench: ## run the benchmarks
	$(GO) test -run '^$$' -bench . -benchmem -timeout 1h ./...

install: build ## install into DESTDIR/PREFIX; /etc/zhx/clients.toml is kept if it exists
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/etc/zhx
	install -m 0755 bin/zhxd bin/zhxctl $(DESTDIR)$(PREFIX)/bin/
	for page in 1 5 8; do install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man$$page etc/man/*.$$page || exit 1; done
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	$(COMPLETION) bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/zhxctl
	$(COMPLETION) zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_zhxctl
	$(COMPLETION) fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/zhxctl.fish
	test -e $(DESTDIR)/etc/zhx/clients.toml || install -m 0644 etc/clients.toml $(DESTDIR)/etc/zhx/clients.toml

cross: ## static binaries for linux/arm (GOARM=7) and linux/arm64 into dist/
	@mkdir -p dist/arm dist/arm64
	GOOS=linux GOARCH=arm GOARM=7 $(GOBUILD) -o dist/arm/ $(PROGRAMS)
	GOOS=linux GOARCH=arm64 $(GOBUILD) -o dist/arm64/ $(PROGRAMS)

clean: ## remove what was built
	rm -rf bin dist
