# What a developer types. Each target installs what it needs first (deploy/install), so a bare machine may start here.

SHELL := /bin/bash
# The demo's build profile, see Cargo.toml.
PROFILE ?= dev
export PROFILE
CARGO_DENY := 0.20.2
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/highwater
# rustup's commands, for a shell that has not read its profile.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.PHONY: help demo test check faults model fmt clean deny install
.DEFAULT_GOAL := help

help: ## Lists the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## Builds, streams a year of flights through all layers, and compares every answer with the truth
	@deploy/install
	@deploy/demo

test: check ## Installs what is missing, then format, lints and every test; ends with the summary
	@.ci/test

check: ## Format and lints, as CI has them; changes no file
	@deploy/install
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

faults: ## Every fault with several seeds on real servers, at most 40 min; ends with a table of lost, doubled, time to catch up
	@deploy/install
	@deploy/faults

model: ## The hand-off's model with 100,000 random walks, some minutes
	@deploy/install tools
	HIGHWATER_WALKS=100000 cargo test --locked --workspace --lib -- --nocapture handoff::model

fmt: ## Formats the code
	cargo fmt --all

clean: ## Removes what was built; what was fetched stays in the user's cache folder
	cargo clean

deny: ## Licences, sources and second versions of crates (installs cargo-deny on first use, some minutes)
	@deploy/install tools
	@test -x $(CACHE)/tools/cargo-deny-$(CARGO_DENY)/bin/cargo-deny || \
		cargo install --locked cargo-deny --version $(CARGO_DENY) --root $(CACHE)/tools/cargo-deny-$(CARGO_DENY)
	$(CACHE)/tools/cargo-deny-$(CARGO_DENY)/bin/cargo-deny --locked --workspace check bans licenses sources

install: ## Installs and fetches what is missing, nothing else
	@deploy/install
