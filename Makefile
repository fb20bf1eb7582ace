# zhx: one small daemon that is broker, process manager and watchdog of a board.
# `make help` lists what there is to make.
GO       ?= go
DESTDIR  ?=
PREFIX   ?= /usr/local
FUZZTIME ?= 60s
MINUTES  ?= 20
# Where run, install, deb and dist take programs from and put what they make; PYTHONDIR is where the system's Python looks.
BIN      ?= bin
DIST     ?= dist
DEBS     ?= amd64 arm64 armhf
PYTHONDIR ?= lib/python3$(if $(filter-out /usr,$(PREFIX)),$(shell python3 -c 'import sys; print(".%d" % sys.version_info[1])' 2>/dev/null))/dist-packages
MAINTAINER ?= zhx <zhx@localhost>
# A release has no git: its version is in a file, and the time of its last commit is that of the file.
VERSION  ?= $(shell cat etc/version 2>/dev/null || git describe --tags --always --dirty 2>/dev/null || echo unknown)
SOURCE_DATE_EPOCH ?= $(shell stat -c %Y etc/version 2>/dev/null || git log -1 --format=%ct 2>/dev/null || echo 0)
GOBUILD   = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X zhx/daemon.Version=$(VERSION) -X main.version=$(VERSION)'
# Not that of bin/, which may be for another machine.
COMPLETION = GOOS= GOARCH= CGO_ENABLED=0 $(GO) run ./cmd/zhxctl completion
PROGRAMS  = ./cmd/zhxd ./cmd/zhxctl ./cmd/zhx-demo

.PHONY: help build run test check arm inits soak fuzz bench install uninstall cross deb deb-test dist clean .FORCE
.DEFAULT_GOAL := build

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## build zhxd, zhxctl and the demo client into bin/
	@mkdir -p bin
	$(GOBUILD) -o bin/ $(PROGRAMS)

# ctrl-C is for zhxd: a shell that ends of it does not do what EXIT has.
run: $(if $(filter bin,$(BIN)),build) ## start zhxd in the foreground with two demo clients; ctrl-C ends it
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && trap : INT && \
	PATH="$(abspath $(BIN)):$$PATH" XDG_RUNTIME_DIR="$$dir" $(BIN)/zhxd --config etc/demo.toml --run-dir "$$dir/zhx"

test: ## run all tests; needs Go alone
	$(GO) test ./...

check: ## gofmt, vet, staticcheck and all tests under the race detector
	@fmt=$$(gofmt -l cmd daemon ipc procman watchdog); test -z "$$fmt" || { echo "not gofmt-ed: $$fmt"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -race ./...

arm: ## test under qemu-user, as 32-bit ARM: the main job, and of the bus what needs neither sock_diag nor its timing
	ZHX_ARM=1 $(GO) test -v -count=1 -run '^TestARM$$' ./cmd
	GOARCH=arm GOARM=7 $(GO) test -exec qemu-arm-static ./ipc/wire
	GOARCH=arm GOARM=7 $(GO) test -exec qemu-arm-static -run 'Fuzz|Levels|Both|Handshake|Requests|Hold|Handled|SentAgain|Topics|Presence|TakenOver|Policy|TestDescriptors|Malformed|Watchdog|Send$$' ./ipc/broker
	GOARCH=arm GOARM=7 $(GO) test -exec qemu-arm-static -run 'Conn|Packets|Addresses' ./ipc

inits: ## test the unit under a real systemd and, ZHX_OPENRC=DIR, the script under a real OpenRC, in namespaces; needs root
	ZHX_INITS=1 $(GO) test -v -count=1 -run '^(TestSystemd|TestOpenRC)$$' ./cmd

soak: ## MINUTES (20) of a board on which all goes on: zhxd does not grow, and kills who is to be killed, and nobody else
	ZHX_SOAK=$(MINUTES) $(GO) test -v -count=1 -timeout 0 -run '^TestSoak$$' ./cmd

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

SHARE   = $(DESTDIR)$(PREFIX)/share
# The files of etc say /usr/local, the documents where things lie in the sources.
PLACED  = sed -e 's|/usr/local/|$(PREFIX)/|g; s|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|'
PUT     = install -m 0644 /dev/stdin
LINKED  = -E -e 's@]\([a-z./]*/(zhx|sock)\.h\)@]($(PREFIX)/include/zhx/\1.h)@g' \
	-e 's@]\([a-z./]*/zhx\.c\)@]($(PREFIX)/share/zhx/c/zhx.c)@g; s@]\([a-z./]*/zhx\.py\)@]($(PREFIX)/$(PYTHONDIR)/zhx.py)@g' \
	-e 's@]\([a-z./]*/zhx\.service\)@]($(PREFIX)/lib/systemd/system/zhx.service)@g' \
	-e 's@]\((\.\./|etc/)(clients\.toml|inittab|zhx\.[a-z]*)\)@]($(PREFIX)/share/zhx/\2)@g; s@]\((\.\./|etc/|ipc/)[A-Za-z./]*/@](@g; s@]\(ipc/@](@g'

install: $(if $(filter bin,$(BIN)),build) ## install into DESTDIR/PREFIX; /etc/zhx/clients.toml is kept if it exists
	install -d $(DESTDIR)/etc/zhx $(addprefix $(DESTDIR)$(PREFIX)/,bin include/zhx lib/systemd/system $(PYTHONDIR)) \
		$(addprefix $(SHARE)/,zhx/c doc/zhx pkgconfig bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	install -m 0755 $(BIN)/zhxd $(BIN)/zhxctl $(DESTDIR)$(PREFIX)/bin/
	for page in 1 5 8; do install -D -m 0644 -t $(SHARE)/man/man$$page etc/man/*.$$page || exit 1; done
	$(COMPLETION) bash | $(PUT) $(SHARE)/bash-completion/completions/zhxctl
	$(COMPLETION) zsh | $(PUT) $(SHARE)/zsh/site-functions/_zhxctl
	$(COMPLETION) fish | $(PUT) $(SHARE)/fish/vendor_completions.d/zhxctl.fish
	install -m 0644 ipc/c/zhx.h ipc/c/sock.h ipc/c/am5728.h $(DESTDIR)$(PREFIX)/include/zhx/
	install -m 0644 ipc/c/zhx.c ipc/c/sock.c $(SHARE)/zhx/c/
	$(PLACED) ipc/c/zhx.pc.in | $(PUT) $(SHARE)/pkgconfig/zhx.pc
	install -m 0644 ipc/python/zhx.py $(DESTDIR)$(PREFIX)/$(PYTHONDIR)/
	$(PLACED) etc/zhx.service | $(PUT) $(DESTDIR)$(PREFIX)/lib/systemd/system/zhx.service
	for f in inittab clients.toml; do $(PLACED) etc/$$f | $(PUT) $(SHARE)/zhx/$$f || exit 1; done
	for f in $(notdir $(wildcard etc/zhx.init etc/zhx.openrc)); do $(PLACED) etc/$$f | install -m 0755 /dev/stdin $(SHARE)/zhx/$$f || exit 1; done
	for f in README.md ipc/PROTOCOL.md etc/doc/*.md; do $(PLACED) $(LINKED) $$f | $(PUT) $(SHARE)/doc/zhx/$${f##*/} || exit 1; done
	install -m 0644 etc/doc/feeder.c ipc/c/example.c ipc/python/example.py $(SHARE)/doc/zhx/
	test -e $(DESTDIR)/etc/zhx/clients.toml || install -m 0644 etc/clients.toml $(DESTDIR)/etc/zhx/clients.toml

uninstall: ## remove from DESTDIR/PREFIX what install puts there; /etc/zhx stays
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && $(MAKE) -s install DESTDIR="$$dir" && cd "$$dir" && rm -r etc && \
		find .$(PREFIX) -mindepth 1 -type d -name zhx -prune -print -o -type f -print | while read -r f; do rm -rf "$(DESTDIR)/$$f"; done

deb-test: ## install, upgrade and remove the package in a copy of ZHX_DEBIAN, a folder with a Debian (mmdebstrap --variant=essential); needs root
	$(GO) test -count=1 -v -run '^Test(Deb|Release)$$' ./cmd

cross: $(addprefix $(DIST)/,arm arm64) ## static binaries for linux/arm (GOARM=7) and linux/arm64 into dist/

$(addprefix $(DIST)/,amd64 arm arm64): $(DIST)/%: .FORCE
	@mkdir -p $@
	GOOS=linux GOARCH=$* GOARM=7 $(GOBUILD) -o $@/ $(PROGRAMS)

deb: $(addprefix $(DIST)/,$(subst armhf,arm,$(DEBS))) ## Debian packages for amd64, arm64 and armhf (DEBS) into dist/
	@for arch in $(DEBS); do \
		GO='$(GO)' VERSION='$(VERSION)' SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) MAINTAINER='$(MAINTAINER)' DIST='$(DIST)' \
		BIN="$(DIST)/$$(echo $$arch | sed s/armhf/arm/)" etc/deb/build $$arch || exit 1; done

dist: ## dist/zhx-VERSION.tar.gz: the sources and all that they need, to be built without a network
	rm -rf $(DIST)/zhx-$(VERSION)
	mkdir -p $(DIST)/zhx-$(VERSION)
	git ls-files -z | tar -c --null -T - | tar -x -C $(DIST)/zhx-$(VERSION)
	echo $(VERSION) > $(DIST)/zhx-$(VERSION)/etc/version
	$(GO) mod vendor -o $(abspath $(DIST))/zhx-$(VERSION)/vendor
	tar -C $(DIST) -c --sort=name --mtime=@$(SOURCE_DATE_EPOCH) --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX zhx-$(VERSION) | \
		gzip -9n > $(DIST)/zhx-$(VERSION).tar.gz
	rm -rf $(DIST)/zhx-$(VERSION)

clean: ## remove what was built
	rm -rf bin dist
