# `make` alone prints what there is. Needed for `make run` and `make test`: Rust (1.85 or newer) and a C compiler.

CARGO     ?= cargo
PYTHON    ?= python3
# Where the cell keeps its state, and the tree it keeps safe.
DIR       ?= $(or $(GROVE_DIR),$(HOME)/.grove)
HOME_TREE ?= $(or $(GROVE_HOME),$(HOME)/GroveHome)
PORT      ?= 5678
PEER_PORT ?= 5679
# Passed on to the script behind `bench`, `demo` and the tests of boards, for example ARGS=--quick.
ARGS      ?=

# Debian architectures: of packages, of cross builds, and of an image.
DEBS        ?= amd64 arm64 armhf
BOARDS      ?= arm64 armhf
IMAGE       ?= arm64
STATICS     := aarch64-unknown-linux-musl arm-unknown-linux-musleabihf

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Equal pieces of machine code stand once: 0.2 MB less on x86-64; 64-bit ARM has it by itself.
SHORT      := $(if $(filter x86_64,$(shell uname -m)),-C llvm-args=-enable-machine-outliner=always)
GROVE      := $(abspath $(TARGET_DIR))/release/grove
CELL       := "$(GROVE)" --dir "$(DIR)" --home "$(HOME_TREE)" --port $(PORT) --peer-port $(PEER_PORT)

# Seeds of whole years in `make sim`, and days of a year.
SIM_SEEDS ?= 2000
SIM_DAYS  ?= 365
# Stories of sharing in `make sim`.
SIM_SHARING ?= 1000
# Years of peers that store for each other.
SIM_BOUNTY ?= 1000

export CARGO PYTHON

.PHONY: help run test sim check fmt lint msrv bench demo release clean
.PHONY: cross-deps cross static deb test-deb test-board test-arm units image image-test deploy
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  options: DIR=$(DIR) HOME_TREE=$(HOME_TREE) PORT=$(PORT) PEER_PORT=$(PEER_PORT) ARGS="

run: release ## build, make a cell if there is none, serve its dashboard
	@test -e "$(DIR)/.key" || $(CELL) init
	@echo "dashboard: http://localhost:$(PORT)/   files: $(HOME_TREE)   stop: Ctrl-C"
	@exec $(CELL) run

sim: ## thousands of virtual years of whole fleets, with every fault (SIM_SEEDS=2000 SIM_DAYS=365)
	GROVE_SIM_SEEDS=$(SIM_SEEDS) GROVE_SIM_DAYS=$(SIM_DAYS) GROVE_SIM_CELLS=50 \
	  $(CARGO) test --locked --profile quick --test simulation -- --nocapture --test-threads 1
	GROVE_SIM_BOUNTY=$(SIM_BOUNTY) GROVE_SIM_DAYS=$(SIM_DAYS) \
	  $(CARGO) test --locked --profile quick --test bounty_simulation -- --nocapture
	GROVE_SIM_SHARING=$(SIM_SHARING) \
	  $(CARGO) test --locked --profile quick --test sharing_simulation -- --nocapture --test-threads 1

test: ## every test; the last line counts them
	@scripts/test

check: fmt lint test ## what a commit must pass: format, lints, tests

fmt: ## is everything formatted (cargo fmt mends it)
	$(CARGO) fmt --check

lint: ## clippy, warnings are errors
	$(CARGO) clippy --locked --all-targets -- -D warnings

msrv: ## does it compile with the oldest Rust we promise
	@cross/msrv

bench: release ## Grove beside restic, rclone and Syncthing, as ratios (ARGS=--quick: a small run)
	$(CARGO) build --locked --release --example primitives --example scale
	@GROVE="$(GROVE)" scripts/bench $(ARGS)
	@if "$${GROVE_AI_PYTHON:-python3}" -c 'import xllamacpp, gguf, numpy' 2>/dev/null; then \
	  GROVE="$(GROVE)" "$${GROVE_AI_PYTHON:-python3}" scripts/bench-ai $(filter --quick,$(ARGS)); \
	  else echo "skipped: scripts/bench-ai (it needs Python with xllamacpp, gguf and numpy; GROVE_AI_PYTHON names it)"; fi

demo: release ## lose a cell and get everything back, on real files (ARGS=--small: a short one)
	@GROVE="$(GROVE)" scripts/demo $(ARGS)

release: ## the program as users get it: target/release/grove
	$(CARGO) rustc --locked --release --bin grove -- $(SHORT)

cross-deps: ## say what cross builds, packages and images need, and install what is missing
	@cross/deps

cross: ## the program for boards, for Debian 12 or newer (BOARDS="arm64 armhf")
	@set -e; for arch in $(BOARDS); do cross/build $$arch; done

static: ## the program for any Linux on ARM, Pi Zero and Pi 1 among them
	@set -e; for target in $(STATICS); do cross/build $$target; done

units: ## check the systemd units
	@scripts/check-units

deb: ## Debian packages (DEBS="amd64 arm64 armhf")
	@set -e; for arch in $(DEBS); do cross/mkdeb $$arch; done

test-deb: ## install, upgrade, remove and purge the package on a clean Debian (root)
	@cross/test-deb

test-board: ## what a card's device makes of grove.txt, with the mistakes that people make
	@cross/test-board

test-arm: ## tests on ARM programs, by emulation (ARGS=--quick: a few)
	@cross/test-arm $(ARGS)

image: ## the image of a card for Raspberry Pi boards (root; IMAGE=arm64 or armhf)
	@cross/image $(IMAGE)

image-test: ## start that image on emulated boards and try it (root; ARGS=--quick: one board)
	@cross/image-test $(IMAGE) $(ARGS)

deploy: ## install what is here on a machine by ssh; the old version comes back if the new fails (HOST=pi@grove.local)
	@cross/deploy $(HOST)

clean: ## remove what was built; cells and their files stay
	$(CARGO) clean
