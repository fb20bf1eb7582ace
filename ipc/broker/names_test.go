package broker

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Who may take a name that another connection holds.
func TestTake(t *testing.T) {
	peerOf := func(t *testing.T, uid int) (p *peer, hangUp func()) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		hangUp = sync.OnceFunc(func() { unix.Close(pair[1]) })
		t.Cleanup(func() { unix.Close(pair[0]); hangUp() })
		return &peer{fd: pair[0], cred: Cred{UID: uid}}, hangUp
	}
	for _, c := range []struct {
		purpose          string
		holder, newcomer int // uid
		managed, same    bool
		gone             bool // the newcomer has hung up
		taken            bool
	}{
		{"a newer registration of the same user wins", 1000, 1000, false, false, false, true},
		{"but not one that is read when its client has gone, and may have come again", 1000, 1000, true, false, true, false},
		{"another user's does not", 1000, 1001, false, false, false, false},
		{"nor root's, if it is foreign", 1000, 0, false, false, false, false},
		{"the managed client does, whoever holds its name", 1000, 1001, true, false, false, true},
		{"two unknown users are not the same", -1, -1, false, false, false, false},
		{"the holder itself may register again", -1, -1, false, true, false, true},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			n := names{receivers: map[string]*claim{}}
			claimOf := func(p *peer, managed bool) *claim {
				s := &session{}
				s.managed.Store(managed)
				k := &claim{peer: p, name: "client1", use: Receive, session: s}
				n.keep(k, 0)
				return k
			}
			holder, _ := peerOf(t, c.holder)
			old := claimOf(holder, false)
			if older, err := n.take(old); older != nil || err != nil {
				t.Fatal(older, err)
			}
			newcomer := old.peer
			if !c.same {
				another, hangUp := peerOf(t, c.newcomer)
				if newcomer = another; c.gone {
					hangUp()
				}
			}
			k := claimOf(newcomer, c.managed)
			older, err := n.take(k)
			if (err == nil) != c.taken || (older == old.peer) != (c.taken && !c.same) {
				t.Errorf("older %v, %v", older, err)
			}
			if got := n.find([]byte("client1")).peer == newcomer; got != c.taken {
				t.Errorf("the newcomer has it: %v", got)
			}
			n.drop(old.peer) // it frees only what it still holds
			if left := n.find([]byte("client1")) != nil; left != (c.taken && !c.same) {
				t.Errorf("after the older has gone, somebody has it: %v", left)
			}
			n.drop(newcomer)
			if n.find([]byte("client1")) != nil {
				t.Error("after both have gone, somebody has it")
			}
			if _, err := n.take(k); err != errGone {
				t.Errorf("a connection that goes takes it again: %v", err)
			}
		})
	}
}

// The table against a model of one map, under any order of registrations and ends.
func TestNamesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := names{receivers: map[string]*claim{}}
		var peers []*peer
		model := map[string]*peer{}
		gone := map[*peer]bool{}
		leave := func(p *peer) {
			gone[p] = true
			for name, holder := range model {
				if holder == p {
					delete(model, name)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"arrive": func(t *rapid.T) {
				peers = append(peers, &peer{cred: Cred{UID: rapid.IntRange(-1, 1).Draw(t, "uid")}})
			},
			"register": func(t *rapid.T) {
				if len(peers) == 0 {
					t.Skip()
				}
				p, s := rapid.SampledFrom(peers).Draw(t, "peer"), &session{}
				s.managed.Store(rapid.Bool().Draw(t, "managed"))
				c := &claim{peer: p, name: rapid.StringMatching("[a-c]").Draw(t, "name"), use: Receive, session: s}
				if n.keep(c, 0) != nil {
					t.Skip()
				}
				older, err := n.take(c)
				holder := model[c.name]
				uid := p.cred.UID
				may := holder == nil || holder == p || s.Managed() || uid >= 0 && uid == holder.cred.UID
				if (err == nil) != (may && !gone[p]) {
					t.Fatalf("take: %v", err)
				}
				if err != nil {
					return
				}
				if (older != nil) != (holder != nil && holder != p) || older != nil && older != holder {
					t.Fatalf("older is %p, was held by %p", older, holder)
				}
				if older != nil {
					leave(older)
				}
				model[c.name] = p
			},
			"end": func(t *rapid.T) {
				if len(peers) == 0 {
					t.Skip()
				}
				p := rapid.SampledFrom(peers).Draw(t, "peer")
				n.drop(p)
				leave(p)
			},
			"": func(t *rapid.T) {
				if len(n.receivers) != len(model) {
					t.Fatalf("%d names, want %d", len(n.receivers), len(model))
				}
				for name, p := range model {
					if c := n.find([]byte(name)); c == nil || c.peer != p {
						t.Fatalf("%s is not with its holder", name)
					}
				}
				for _, p := range peers {
					if len(p.claims) > maxClaims {
						t.Fatalf("%d claims kept", len(p.claims))
					}
				}
			},
		})
	})
}
