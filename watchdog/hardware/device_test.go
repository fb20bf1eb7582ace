package hardware

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// card stands in for a watchdog and its driver, as the kernel's watchdog core has them: opening arms it, and at its
// timeout it fires. A test may change what the driver can do before it opens it.
type card struct {
	options    uint32
	timeout    int // seconds
	min, max   int
	bootStatus int
	nowayout   bool
	refuse     map[string]error // by method

	open, armed, magic bool
	late               bool
	deadline           time.Time
	calls              []string
}

func newCard() *card {
	return &card{options: unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING | unix.WDIOF_MAGICCLOSE, timeout: 60, min: 1, max: 120}
}

func (c *card) opener(string) (Device, error) {
	if c.open {
		return nil, unix.EBUSY
	}
	c.open, c.armed = true, true
	c.ping()
	return c, nil
}

func (c *card) ping() {
	c.fired()
	c.deadline = time.Now().Add(time.Duration(c.timeout) * time.Second)
}

// fired says whether its timeout ever passed while it was armed.
func (c *card) fired() bool {
	c.late = c.late || c.armed && !c.deadline.IsZero() && time.Now().After(c.deadline)
	return c.late
}

func (c *card) call(method string) error {
	c.calls = append(c.calls, method)
	if !c.open {
		return unix.EBADF
	}
	return c.refuse[method]
}

func (c *card) Keepalive() error {
	if err := c.call("keepalive"); err != nil {
		return err
	}
	if c.options&unix.WDIOF_KEEPALIVEPING == 0 {
		return unix.EOPNOTSUPP
	}
	c.ping()
	return nil
}

func (c *card) SetTimeout(seconds int) error {
	if err := c.call("set timeout"); err != nil {
		return err
	}
	if c.options&unix.WDIOF_SETTIMEOUT == 0 {
		return unix.EOPNOTSUPP
	}
	if seconds < c.min || seconds > c.max {
		return unix.EINVAL
	}
	c.timeout = seconds
	c.ping()
	return nil
}

func (c *card) Timeout() (int, error) { return c.timeout, c.call("timeout") }

func (c *card) BootStatus() (int, error) { return c.bootStatus, c.call("boot status") }

func (c *card) Info() (string, uint32, error) { return "Stand-in", c.options, c.call("info") }

// Write feeds, and each write says anew whether a close is to disarm.
func (c *card) Write(b []byte) (int, error) {
	if err := c.call("write " + string(b)); err != nil {
		return 0, err
	}
	c.magic = slices.Contains(b, 'V')
	c.ping()
	return len(b), nil
}

func (c *card) Close() error {
	if err := c.call("close"); err != nil {
		return err
	}
	c.open = false
	if (c.magic || c.options&unix.WDIOF_MAGICCLOSE == 0) && !c.nowayout {
		c.fired()
		c.armed = false
	} else {
		c.ping()
	}
	return nil
}

func mustOpen(t *testing.T, c *card) *Dog {
	t.Helper()
	d, err := Open("/dev/watchdog", 30*time.Second, c.opener)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What drivers that differ let Open learn. None of it is an error.
func TestOpen(t *testing.T) {
	well := Info{Identity: "Stand-in", Timeout: 30 * time.Second, MagicClose: true}
	with := func(f func(*Info)) Info { i := well; f(&i); return i }
	for _, tt := range []struct {
		name string
		card func(*card)
		want time.Duration // 0: 30 s
		info Info
	}{
		{name: "a driver that can all", info: well},
		{name: "parts of a second are rounded up", want: 1500 * time.Millisecond, info: with(func(i *Info) { i.Timeout = 2 * time.Second })},
		{name: "no timeout to be set", card: func(c *card) { c.options &^= unix.WDIOF_SETTIMEOUT }, info: with(func(i *Info) { i.Timeout = time.Minute })},
		{name: "an old driver without it", card: func(c *card) { c.refuse = map[string]error{"set timeout": unix.ENOTTY} }, info: with(func(i *Info) { i.Timeout = time.Minute })},
		{name: "out of its range", want: time.Hour, info: with(func(i *Info) { i.Timeout = time.Minute })},
		{name: "it does not tell its timeout", card: func(c *card) { c.refuse = map[string]error{"timeout": unix.EOPNOTSUPP} }, info: with(func(i *Info) { i.Timeout = 0 })},
		{name: "it tells nonsense", card: func(c *card) { c.timeout, c.max = -1, 0 }, info: with(func(i *Info) { i.Timeout = 0 })},
		{name: "it knows that it fired", card: func(c *card) { c.bootStatus = unix.WDIOF_CARDRESET | unix.WDIOF_OVERHEAT }, info: with(func(i *Info) { i.WasReset = true })},
		{name: "another reason for the reset", card: func(c *card) { c.bootStatus = unix.WDIOF_POWERUNDER }, info: well},
		{name: "it does not know the reason", card: func(c *card) {
			c.bootStatus, c.refuse = unix.WDIOF_CARDRESET, map[string]error{"boot status": unix.EOPNOTSUPP}
		}, info: well},
		{name: "no magic close", card: func(c *card) { c.options &^= unix.WDIOF_MAGICCLOSE }, info: with(func(i *Info) { i.MagicClose = false })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCard()
				if tt.card != nil {
					tt.card(c)
				}
				want := tt.want
				if want == 0 {
					want = 30 * time.Second
				}
				d, err := Open("/dev/watchdog", want, c.opener)
				if err != nil {
					t.Fatal(err)
				}
				if d.Info() != tt.info {
					t.Errorf("info %+v, want %+v", d.Info(), tt.info)
				}
				if err := d.Feed(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A device that another has open says so; one that is none is closed again, with nothing written.
func TestOpenErrors(t *testing.T) {
	c := newCard()
	d := mustOpen(t, c)
	if _, err := Open("/dev/watchdog", time.Second, c.opener); !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "/dev/watchdog") {
		t.Errorf("second open: %v", err)
	}
	if err := d.Close(true); err != nil {
		t.Error(err)
	}
	mustOpen(t, c).Close(true)

	c = newCard()
	c.refuse = map[string]error{"info": unix.ENOTTY}
	if _, err := Open("/dev/watchdog", time.Second, c.opener); !errors.Is(err, unix.ENOTTY) {
		t.Error(err)
	}
	if want := []string{"info", "close"}; !slices.Equal(c.calls, want) {
		t.Errorf("calls %q, want %q", c.calls, want)
	}
}

// Fed within its timeout it does not fire, however it is fed; not fed it does.
func TestFeed(t *testing.T) {
	for _, tt := range []struct {
		name  string
		card  func(*card)
		calls []string // of two feeds
	}{
		{"by ioctl", func(*card) {}, []string{"keepalive", "keepalive"}},
		{"by write, for the core says that the driver has no ioctl", func(c *card) { c.options &^= unix.WDIOF_KEEPALIVEPING },
			[]string{"keepalive", "write \x00", "write \x00"}},
		{"by write, for an old driver knows no such ioctl", func(c *card) { c.refuse = map[string]error{"keepalive": unix.ENOTTY} },
			[]string{"keepalive", "write \x00", "write \x00"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCard()
				tt.card(c)
				d := mustOpen(t, c)
				c.calls = nil
				for range 2 {
					time.Sleep(29 * time.Second)
					if err := d.Feed(); err != nil {
						t.Error(err)
					}
				}
				if !slices.Equal(c.calls, tt.calls) {
					t.Errorf("calls %q, want %q", c.calls, tt.calls)
				}
				time.Sleep(29 * time.Second)
				if c.fired() {
					t.Error("fired though fed")
				}
				time.Sleep(2 * time.Second)
				if !c.fired() {
					t.Error("did not fire after 31 s without a feed")
				}
			})
		})
	}
}

// An error of one feed is told, and the next one asks the driver again.
func TestFeedError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCard()
		d := mustOpen(t, c)
		c.calls, c.refuse = nil, map[string]error{"keepalive": unix.EIO}
		if err := d.Feed(); !errors.Is(err, unix.EIO) {
			t.Error(err)
		}
		c.refuse = nil
		if err := d.Feed(); err != nil {
			t.Error(err)
		}
		if want := []string{"keepalive", "keepalive"}; !slices.Equal(c.calls, want) {
			t.Errorf("calls %q, want %q", c.calls, want)
		}
		if err := d.Close(true); err != nil {
			t.Error(err)
		}
		if err := d.Feed(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("feed after the close: %v", err)
		}
		if err := d.Close(true); err != nil || c.calls[len(c.calls)-1] != "close" || len(c.calls) != 4 {
			t.Errorf("second close: %v, calls %q", err, c.calls)
		}
	})
}

// Whether the device is armed after a close, and what was written.
func TestClose(t *testing.T) {
	for _, tt := range []struct {
		name   string
		card   func(*card)
		disarm bool
		calls  []string
		err    string // part of it
		fires  bool
	}{
		{"disarm", nil, true, []string{"write V", "close"}, "", false},
		{"stay armed", nil, false, []string{"close"}, "", true},
		{"nowayout", func(c *card) { c.nowayout = true }, true, []string{"write V", "close"}, "", true},
		{"no magic close", func(c *card) { c.options &^= unix.WDIOF_MAGICCLOSE }, true, []string{"write V", "close"}, "no magic close", false},
		{"no magic close, stay armed: the close disarms", func(c *card) { c.options &^= unix.WDIOF_MAGICCLOSE }, false, []string{"close"}, "", false},
		{"the write fails: closed all the same", func(c *card) { c.refuse = map[string]error{"write V": unix.EIO} }, true, []string{"write V", "close"}, "disarm: input/output error", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCard()
				if tt.card != nil {
					tt.card(c)
				}
				d := mustOpen(t, c)
				if err := d.Feed(); err != nil {
					t.Error(err)
				}
				c.calls = nil
				err := d.Close(tt.disarm)
				if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				if !slices.Equal(c.calls, tt.calls) || c.open {
					t.Errorf("calls %q, want %q", c.calls, tt.calls)
				}
				time.Sleep(time.Minute)
				if c.fired() != tt.fires {
					t.Errorf("fired: %v", c.fired())
				}
			})
		})
	}
}

// The kernel answers the real calls, on files that are no watchdog, and they come to no harm.
func TestNoWatchdog(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		want unix.Errno
	}{
		{"/dev/null", unix.ENOTTY}, {file, unix.ENOTTY}, {fifo, unix.ENXIO}, {dir, unix.EISDIR}, {filepath.Join(dir, "missing"), unix.ENOENT},
	} {
		if d, err := Open(tt.path, 30*time.Second, OpenDevice); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.path) {
			t.Errorf("open %s: %v, %v, want %v", tt.path, d, err, tt.want)
		}
	}
	for _, path := range []string{"/dev/null", file} {
		d, err := OpenDevice(path)
		if err != nil {
			t.Fatal(err)
		}
		_, errTimeout := d.Timeout()
		_, errBoot := d.BootStatus()
		_, _, errInfo := d.Info()
		for call, err := range map[string]error{"keepalive": d.Keepalive(), "set": d.SetTimeout(30), "get": errTimeout, "boot": errBoot, "info": errInfo} {
			if err != unix.ENOTTY {
				t.Errorf("%s of %s: %v, want ENOTTY", call, path, err)
			}
		}
		if n, err := d.Write(nil); n != 0 || err != nil {
			t.Errorf("write to %s: %d, %v", path, n, err)
		}
		if flags, err := unix.FcntlInt(uintptr(d.(device)), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("a child would inherit %s: %#x, %v", path, flags, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != unix.EBADF {
			t.Errorf("second close of %s: %v", path, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "as it was" {
		t.Errorf("%q, %v", b, err)
	}
}

// The kernel's own software watchdog. It restarts the machine if this test goes wrong, so it has to be asked for.
func TestSoftdog(t *testing.T) {
	const path = "/dev/watchdog"
	if os.Getenv("ZHX_SOFTDOG") != "1" {
		t.Skip("ZHX_SOFTDOG=1 is not set: the test would arm a watchdog")
	}
	// From sysfs, for asking the device arms it.
	if b, err := os.ReadFile("/sys/class/watchdog/watchdog0/identity"); err != nil || strings.TrimSpace(string(b)) != "Software Watchdog" {
		t.Skipf("%s is not softdog's: %q, %v", path, b, err)
	}
	d, err := Open(path, 30*time.Second, OpenDevice)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Info{Identity: "Software Watchdog", Timeout: 30 * time.Second, MagicClose: true}); d.Info() != want {
		t.Errorf("info %+v, want %+v", d.Info(), want)
	}
	if err := d.Feed(); err != nil {
		t.Error(err)
	}
	if _, err := Open(path, 30*time.Second, OpenDevice); !errors.Is(err, ErrBusy) {
		t.Errorf("second open: %v", err)
	}
	if err := d.Close(true); err != nil {
		t.Error(err)
	}
}
