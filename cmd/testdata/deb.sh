#!/bin/sh
# The life of the package in a Debian that has nothing but what is essential: cmd/deb_test.go runs it as root, in namespaces of
# its own. In /tmp: 1.0.deb, 2.0.deb, zhx-demo.
set -eux
cd /tmp
trap 'test $? -eq 0 || { zhxctl status; cat /run/zhx/zhxd.log; }' EXIT

soon() { # soon COMMAND...: it comes true within a minute
    for _ in $(seq 600); do
        if "$@"; then return; fi
        sleep 0.1
    done
    echo "not within a minute: $*"
    exit 1
}
install() { dpkg --force-unsafe-io -i "$@" </dev/null; }
files() { find / -xdev \( -path /proc -o -path /tmp -o -path /var/lib/dpkg -o -path /var/log/dpkg.log \) -prune -o -print | sort; }
pid() { zhxctl status --json | sed -n "/\"name\": \"$1\"/,/\"pid\"/s/.*\"pid\": \([0-9]*\).*/\1/p" | head -n 1; }
daemon() { zhxctl status --json | sed -n '/"daemon"/,/"pid"/s/.*"pid": \([0-9]*\).*/\1/p' | head -n 1; }
pids() { for name in client1 client2 agent; do pid $name; done; }
processes() { # processes WORD: the pids of those whose first argument has it
    for p in /proc/[0-9]*; do
        if tr '\0' '\n' <"$p/cmdline" 2>/dev/null | head -n 1 | grep -q "$1"; then echo "${p#/proc/}"; fi
    done
}
none() { test -z "$(processes "$1")"; }
gone() { test ! -e "/proc/$1/stat" || grep -q ' Z ' "/proc/$1/stat"; }
heard() { zhxctl logs -n 100000 client2 | grep -c 'received from client1' || :; }
more() { test "$(heard)" -gt "$1"; }
runs() { # runs VERSION: that zhxd runs, and with it the clients that ran before
    zhxctl version | grep -x "zhxd $1"
    test "$(pids)" = "$clients"
    test ! -e /run/zhx-upgrade
    soon more "$(heard)" # they do the main job
}

# A new installation starts nothing, and says what to type.
files >before
install 1.0.deb | tee said
grep 'zhxctl start$' said
none zhx
test ! -e /run/zhx

# The main job. The file needs a variable of zhxd's environment.
cat >/etc/zhx/clients.toml <<'END'
[client.client1]
command = ["${DEMO}", "client1", "client2", "1s"]
[client.client2]
command = ["${DEMO}", "client2", "client1", "1s"]
[client.agent]
command = ["sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.1; done; dpkg --force-unsafe-io -i /tmp/1.0.deb >/tmp/agent 2>&1 && touch /tmp/gone; sleep 1000"]
END
cp /etc/zhx/clients.toml mine
DEMO=/tmp/zhx-demo zhxctl start
clients=$(pids)
runs 1.0
keeper=$(processes zhxd)

# An upgrade, by somebody with another environment.
ZHX_CONTROL=/tmp/other install 2.0.deb
runs 2.0
for p in $keeper; do soon gone "$p"; done
cmp /etc/zhx/clients.toml mine

# An upgrade that fails: 2.0 is back.
dpkg-deb -R 2.0.deb fails
printf '#!/bin/sh\nexit 1\n' >fails/DEBIAN/preinst
chmod 755 fails/DEBIAN/preinst
sed -i 's/^Version: .*/Version: 3.0/' fails/DEBIAN/control
dpkg-deb -Zgzip -z1 -b fails 3.0.deb
if install 3.0.deb; then exit 1; fi
runs 2.0

# A client is the one that changes the package, here to an older one; it can be stopped as before.
touch go
soon test -e gone
cat agent
runs 1.0
rm go
before=$(daemon)
zhxctl restart agent
test "$(daemon)" = "$before"

# One that was stopped stays so.
zhxctl shutdown
install 2.0.deb
soon none zhx

# Removal stops clients and zhxd, and leaves the file with the clients.
DEMO=/tmp/zhx-demo zhxctl start
mkdir -p /usr/lib/python3/dist-packages/__pycache__
touch /usr/lib/python3/dist-packages/__pycache__/zhx.cpython-311.pyc
dpkg -r zhx
soon none zhx # the keeper ends after zhxd
files >after
diff before after | grep '^[<>]' >left || :
printf '> %s\n' /etc/zhx /etc/zhx/clients.toml | diff - left
cmp /etc/zhx/clients.toml mine

# The same with clients that a zhxd has left, whose file is another one, also after an upgrade.
install 1.0.deb
DEMO=/tmp/zhx-demo zhxctl --config /tmp/mine start
clients=$(pids)
install 2.0.deb
runs 2.0
zhxctl shutdown --keep
test -n "$(processes zhx-demo)"
dpkg -P zhx
soon none zhx # the keeper ends after zhxd
files >after
diff before after
