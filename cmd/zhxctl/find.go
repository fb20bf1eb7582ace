package main

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"path/filepath"

	"github.com/BurntSushi/toml"

	"zhx/daemon/control"
)

// This file finds the control socket and the configuration.

const (
	defaultConfig = "/etc/zhx/clients.toml"
	defaultRunDir = "/run/zhx"
	controlName   = "control.sock"
)

// socket is the path of the control socket. It must be found also where the configuration has become unreadable, since then
// people look at the status: so this is lenient, unlike zhxd.
func (a *app) socket() (string, error) {
	if path := cmp.Or(a.control, os.Getenv("ZHX_CONTROL")); path != "" {
		return path, nil
	}
	data, err := os.ReadFile(a.configPath())
	if err != nil && a.config != "" {
		return "", control.Errorf(control.CodeUsage, "name the control socket itself with --control", "look for [daemon] control: %w", err)
	}
	var found struct {
		Daemon struct {
			Control string
			RunDir  string `toml:"run_dir"`
		}
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	for n := len(lines); n > 0; { // what stands above a mistake may do
		bad, ok := errors.AsType[toml.ParseError](toml.Unmarshal(bytes.Join(lines[:n], nil), &found))
		if !ok {
			break
		}
		n = min(bad.Position.Line, n) - 1
	}
	switch d := found.Daemon; {
	case d.Control != "":
		return d.Control, nil
	case d.RunDir != "":
		return filepath.Join(d.RunDir, controlName), nil
	}
	board := filepath.Join(defaultRunDir, controlName)
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); os.Geteuid() != 0 && filepath.IsAbs(runtime) {
		own := filepath.Join(runtime, "zhx", controlName)
		if _, err := os.Lstat(own); err == nil {
			return own, nil
		}
		if _, err := os.Lstat(board); err != nil {
			return own, nil // neither is there: the one that `start` would make
		}
	}
	return board, nil
}

// configPath is the configuration, absolute: zhxd works in another folder.
func (a *app) configPath() string {
	path, err := filepath.Abs(cmp.Or(a.config, defaultConfig))
	if err != nil {
		return a.config
	}
	return path
}
