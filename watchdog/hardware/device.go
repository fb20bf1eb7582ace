// The watchdog device: what linux/watchdog.h offers, as an interface that a test can stand in for, and the Dog above it,
// which knows how drivers differ.

// Package hardware is the end of the chain of supervision: the device that resets the board when zhxd no longer feeds it,
// and the record of the resets that zhxd makes itself. It decides nothing: who feeds, and when to restart, is the caller's.
//
//	start ── Open: it is armed ──────────> Dog ─ ioctl ─> /dev/watchdog ─ a timeout without Feed ─> the board is reset
//	a completed judging pass ── Feed ────> Dog
//	orderly end ── Close ─ 'V', or not ──> Dog
//
//	end of a critical client's ladder ── Recent is within the budget ─> Write (resets.json) ─> Restart (sync, reboot)
//	start, perhaps after that reboot ── Load ─> Last is reported; Recent above the budget: safe mode
//
// Nothing is written in steady state, and there is no goroutine but Restart's.
package hardware

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy: another process has the device open, for it lets itself be opened once only.
var ErrBusy = errors.New("another process has it open, as systemd with RuntimeWatchdogSec, or another watchdog daemon")

// A Device is an open watchdog device: one system call a method. Errors are a plain errno; which one says that a call is
// not supported depends on the driver: EOPNOTSUPP from the kernel's watchdog core, ENOTTY from drivers without it.
type Device interface {
	Keepalive() error
	SetTimeout(seconds int) error
	Timeout() (seconds int, err error)
	BootStatus() (flags int, err error)                 // WDIOF_*: why the board was reset last
	Info() (identity string, options uint32, err error) // WDIOF_*: what the driver can do
	Write([]byte) (int, error)
	Close() error
}

// An Opener opens the device, which arms it.
type Opener func(path string) (Device, error)

type device int // a file descriptor

// OpenDevice is the real Opener. Any file opens that can be written to: Info tells whether it is a watchdog.
func OpenDevice(path string) (Device, error) {
	// Not inherited: a client with it would keep the device open, and armed, when zhxd closes it. O_NONBLOCK: no wait for
	// the reader of a FIFO.
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	return device(fd), err
}

func (d device) Keepalive() error { return unix.IoctlWatchdogKeepalive(int(d)) }

func (d device) SetTimeout(seconds int) error {
	return unix.IoctlSetPointerInt(int(d), unix.WDIOC_SETTIMEOUT, seconds)
}

func (d device) Timeout() (int, error)    { return unix.IoctlGetInt(int(d), unix.WDIOC_GETTIMEOUT) }
func (d device) BootStatus() (int, error) { return unix.IoctlGetInt(int(d), unix.WDIOC_GETBOOTSTATUS) }

func (d device) Info() (string, uint32, error) {
	info, err := unix.IoctlGetWatchdogInfo(int(d))
	identity, _, _ := bytes.Cut(info.Identity[:], []byte{0})
	return string(identity), info.Options, err
}

func (d device) Write(b []byte) (int, error) { return unix.Write(int(d), b) }
func (d device) Close() error                { return unix.Close(int(d)) }

// Info is what an open device says of itself.
type Info struct {
	Identity string
	Timeout  time.Duration // that holds, maybe not what was asked for; 0: not known
	// MagicClose: it stays armed when it is closed without disarming, so when zhxd dies. Without, the kernel's watchdog core
	// disarms it at any close: it then guards against a hang of zhxd, not against its death.
	MagicClose bool
	// WasReset: the driver says that the last reset was the watchdog's. False says nothing: many drivers cannot know, omap_wdt
	// among them (booted by device tree), and answer 0.
	WasReset bool
}

// Dog is an armed watchdog device. Its methods are for one goroutine at a time.
type Dog struct {
	path   string
	info   Info
	dev    Device // nil after Close
	writes bool   // the driver has no keepalive ioctl: a write feeds
}

// Open opens the device, and so arms it: from now on it wants to be fed within Info().Timeout, whatever becomes of zhxd.
// want > 0 is the timeout to ask for, rounded up to seconds; a device that refuses it keeps its own, which is no error. The
// error is ErrBusy, or says that there is no device, or that the file is no watchdog, which was not written to then.
func Open(path string, want time.Duration, open Opener) (*Dog, error) {
	dev, err := open(path)
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w (%w)", ErrBusy, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open watchdog device %q: %w", path, err)
	}
	d := &Dog{path: path, dev: dev}
	var options uint32
	if d.info.Identity, options, err = dev.Info(); err != nil { // the one ioctl that every driver must have (watchdog-api.rst)
		dev.Close()
		return nil, fmt.Errorf("open watchdog device %q: it is no watchdog: ask for its identity: %w", path, err)
	}
	d.info.MagicClose = options&unix.WDIOF_MAGICCLOSE != 0
	// No error of these ends it, for the device is armed already. Refused is SETTIMEOUT by EINVAL too: out of the driver's
	// range. It may also take another value than was asked for.
	_ = dev.SetTimeout(int((want + time.Second - 1) / time.Second))
	if seconds, err := dev.Timeout(); err == nil && seconds > 0 {
		d.info.Timeout = time.Duration(seconds) * time.Second
	}
	if flags, err := dev.BootStatus(); err == nil {
		d.info.WasReset = flags&unix.WDIOF_CARDRESET != 0
	}
	return d, nil
}

// Info says what Open learnt.
func (d *Dog) Info() Info { return d.info }

// Feed starts the device's timeout anew. An error does not close it: the next Feed tries again.
func (d *Dog) Feed() error {
	if d.dev == nil {
		return fmt.Errorf("feed watchdog device %q: %w", d.path, os.ErrClosed)
	}
	var err error
	if !d.writes {
		err = d.dev.Keepalive()
		d.writes = errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY)
	}
	if d.writes {
		_, err = d.dev.Write([]byte{0}) // any byte but 'V'
	}
	if err != nil {
		return fmt.Errorf("feed watchdog device %q: %w", d.path, err)
	}
	return nil
}

// Close closes the device, also if it fails. With disarm it is stopped first, as far as that can be had: one that is set to
// nowayout stays armed, and only the kernel's log says so; of one without magic close the error says that its driver
// decides. Without disarm nothing is written, and a device with magic close resets the board after its timeout, unless
// somebody opens and feeds it.
func (d *Dog) Close(disarm bool) error {
	if d.dev == nil {
		return nil
	}
	var err error
	if disarm {
		_, err = d.dev.Write([]byte{'V'})
		if err == nil && !d.info.MagicClose {
			err = errors.New("it has no magic close: it may still be armed")
		}
		if err != nil {
			err = fmt.Errorf("disarm: %w", err)
		}
	}
	err = errors.Join(err, d.dev.Close())
	d.dev = nil
	if err != nil {
		return fmt.Errorf("close watchdog device %q: %w", d.path, err)
	}
	return nil
}
