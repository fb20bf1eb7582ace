package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

// This file writes configurations: a first one, and what an editor makes of one. What is not valid replaces nothing.

// firstConfig is etc/clients.toml, which a test holds it to.
//
//go:embed clients.toml
var firstConfig []byte

func (a *app) initCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "init [FILE]",
		Short: "write a first configuration, with every key and its default as a comment",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path := a.file(args)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return failed(err, "")
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return control.Errorf(control.CodeFailed, "zhxctl edit "+path, "init: %s is there already, and stays as it is", path)
			}
			if err != nil {
				return failed(err, "")
			}
			_, err = f.Write(firstConfig)
			if err = cmp.Or(err, f.Sync(), f.Close()); err != nil {
				os.Remove(path)
				return failed(err, "")
			}
			fmt.Fprintf(a.out, "%s is written, and starts nothing yet\n  -> zhxctl edit %[1]s\n", path)
			return nil
		},
	}
}

func (a *app) schemaCmd() *cobra.Command {
	var answers bool
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "print a JSON Schema of the configuration, for editors",
		Long: `Print a JSON Schema (draft 4) of the configuration, for editors that know taplo:

  zhxctl schema > /usr/share/zhx/clients.schema.json

and as the first line of clients.toml:  #:schema /usr/share/zhx/clients.schema.json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text := config.Schema()
			if answers {
				text = control.Schema
			}
			_, err := a.out.Write(text)
			return err
		},
	}
	cmd.Flags().BoolVar(&answers, "answers", false, "print instead one (draft 2020-12) of what --json prints, by verb below $defs")
	return cmd
}

func (a *app) editCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "edit [FILE]",
		Short: "edit the configuration, which is replaced only by a valid one",
		Long: `Edit the configuration with $VISUAL, else $EDITOR, else vi: a copy, which takes its place when it is valid.

Its mode and owner stay, access control lists do not. A symbolic link stays, and what it leads to is replaced.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.edit(cmd.Context(), a.file(args))
		},
	}
}

// failed is an error of the file system, of which permissions are one that a script tells apart.
func failed(err error, hint string) error {
	if errors.Is(err, fs.ErrPermission) {
		return control.Errorf(control.CodeForbidden, cmp.Or(hint, "become root, or name another file"), "%w", err)
	}
	return control.Errorf(control.CodeFailed, hint, "%w", err)
}

// edit lets a person edit a copy of the file at path until it is valid or given up.
func (a *app) edit(ctx context.Context, path string) error {
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return control.Errorf(control.CodeUsage, "zhxctl init "+path, "edit: there is no %s", path)
	}
	var was fs.FileInfo
	if err == nil {
		was, err = os.Stat(target)
	}
	if err == nil && !was.Mode().IsRegular() {
		err = fmt.Errorf("edit: %s is no regular file", path)
	}
	if err != nil {
		return failed(err, "")
	}
	before, err := os.ReadFile(target)
	if err != nil {
		return failed(err, "")
	}
	f, err := os.CreateTemp(filepath.Dir(target), ".zhxctl-edit-*.toml") // there, so that it can be renamed
	if err != nil {
		return failed(err, "")
	}
	name, keep := f.Name(), false
	defer func() {
		if !keep {
			os.Remove(name)
		}
	}()
	_, err = f.Write(before)
	if err = cmp.Or(err, f.Close()); err == nil {
		err = like(name, was) // nobody shall edit in vain
	}
	if err != nil {
		return failed(err, "")
	}
	options := config.Options{Environ: a.environ(ctx), Others: true}
	conf, err := a.edited(ctx, path, name, before, options)
	if err != nil || conf == nil {
		e, ok := errors.AsType[*control.Error](err)
		keep = ok && e.Code == control.CodeUsage && e.Hint != "" // which names the file
		return err
	}
	keep = true // somebody's work, until it is in place
	if now, err := os.ReadFile(target); err != nil || !bytes.Equal(now, before) {
		return control.Errorf(control.CodeFailed, "diff "+path+" "+name, "edit: %s was changed by somebody else meanwhile, and stays so", path)
	}
	if err = like(name, was); err == nil { // an editor may have made it anew
		err = os.Rename(name, target)
	}
	if err != nil {
		return failed(err, "the edit is in "+name)
	}
	keep = false
	old, _ := config.Parse(path, before, options)
	if manual := func(c *config.Config) bool { return c != nil && c.Daemon.Reload == "manual" }; manual(old) || manual(conf) {
		fmt.Fprintf(a.out, "%s is replaced; zhxd waits, by [daemon] reload\n  -> zhxctl reload\n", path)
	} else {
		fmt.Fprintf(a.out, "%s is replaced; a zhxd that runs by it reloads by itself\n", path)
	}
	return nil
}

// edited runs the editor on the copy called name until it is valid; nil where it was not changed.
func (a *app) edited(ctx context.Context, path, name string, before []byte, o config.Options) (*config.Config, error) {
	editor := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi")
	for {
		cmd := exec.Command("/bin/sh", "-c", editor+` "$1"`, "sh", name) // with its arguments, as others run it
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, control.Errorf(control.CodeFailed, "name one that works in $EDITOR", "edit: %s: %w; %s stays as it was", editor, err, path)
		}
		after, err := os.ReadFile(name)
		if err != nil {
			return nil, failed(err, "")
		}
		if bytes.Equal(before, after) {
			fmt.Fprintf(a.out, "%s is unchanged\n", path)
			return nil, nil
		}
		conf, found, err := sorted(config.Check(path, after, o))
		a.point(a.out, after, found)
		if err != nil || conf != nil {
			return conf, err
		}
		if !a.again(ctx) {
			where := ""
			if isTerminal(os.Stdin) { // else nobody is there to go on with it
				where = "your edit is in " + name
			}
			return nil, control.Errorf(control.CodeUsage, where, "edit: what was edited is not valid; %s stays as it was", path)
		}
	}
}

// again asks on a terminal whether to go on; ctx ends with ^C.
func (a *app) again(ctx context.Context) bool {
	if !isTerminal(os.Stdin) {
		return false
	}
	fmt.Fprint(a.err, "edit again? [Y/n] ")
	answer := make(chan string, 1)
	go func() {
		var line [80]byte
		n, _ := os.Stdin.Read(line[:]) // 0 at the end of the input, which is no answer
		answer <- strings.ToLower(string(line[:n]))
	}()
	select {
	case <-ctx.Done():
		return false
	case word := <-answer:
		return word == "\n" || strings.HasPrefix(word, "y")
	}
}

// like gives the file called name the owner and mode of was, and has it on the disk before it takes that one's place.
func like(name string, was fs.FileInfo) error {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0) // in a directory of somebody else's it may be a link by now
	if err != nil {
		return err
	}
	defer f.Close()
	st := was.Sys().(*syscall.Stat_t)
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := f.Chmod(was.Mode()); err != nil {
		return err
	}
	return f.Sync()
}
