package check

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWrite(t *testing.T) {
	findings := []Finding{
		{Level: OK, What: "Postfix 3.10.13"},
		{
			Level: Warning,
			What:  "smtp_tls_security_level = encrypt: mail is deferred to all domains that cannot do that and have no policy",
			Mend:  "If that is not what you want:\n    postconf -e 'smtp_tls_security_level = dane and so on until it is longer than a line'\n    postfix reload\nThat is all.",
		},
		{Level: Fault, What: "x", Mend: "    postfix reload"},
		{Level: Fault, What: strings.Repeat("y", 90) + " z", Mend: "Do something that takes so many words that they do not fit into one line of eighty columns."},
	}
	const want = `FAULT    x
         mend:
             postfix reload
FAULT    yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy
         z
         mend: Do something that takes so many words that they do not fit into
         one line of eighty columns.
warning  smtp_tls_security_level = encrypt: mail is deferred to all domains that
         cannot do that and have no policy
         mend: If that is not what you want:
             postconf -e 'smtp_tls_security_level = dane and so on until it is longer than a line'
             postfix reload
         That is all.
ok       Postfix 3.10.13
2 faults, 1 warning
`
	var b strings.Builder
	if err := Write(&b, findings); err != nil || b.String() != want {
		t.Errorf("%v:\n%s\nwant:\n%s", err, b.String(), want)
	}
	text, err := json.Marshal(findings[:1])
	if want := `[{"level":"ok","what":"Postfix 3.10.13"}]`; err != nil || string(text) != want {
		t.Errorf("%s, %v; want %s", text, err, want)
	}
}

func TestStore(t *testing.T) {
	w := newWorld(t)
	w.cfg.Store.Path = w.path("none/ruapost.db")
	w.expect(w.check(), "fault: the store's folder DIR/none is not there")
	w.cfg.Store.Path = w.path("ca.pem/ruapost.db")
	w.expect(w.check(), "fault: the store's folder DIR/ca.pem is not there")
	w.cfg.Store.Path = filepath.Join(w.dir, "ruapost.db")
	w.expect(w.check())
	if _, err := os.Stat(w.cfg.Store.Path); !os.IsNotExist(err) {
		t.Errorf("the store was made: %v", err)
	}
}

func TestFull(t *testing.T) {
	for _, tt := range []struct {
		st   unix.Statfs_t
		want bool
	}{
		{unix.Statfs_t{Bsize: 4096, Blocks: 1 << 20, Bavail: 1 << 19, Files: 1000, Ffree: 500}, false},
		{unix.Statfs_t{Bsize: 4096, Blocks: 1 << 20, Bavail: 10, Files: 1000, Ffree: 500}, true},
		{unix.Statfs_t{Bsize: 4096, Blocks: 1 << 20, Bavail: 1 << 19, Files: 1000, Ffree: 1}, true},
		{unix.Statfs_t{Bsize: 4096, Blocks: 1 << 20, Bavail: 1 << 19}, false}, // btrfs counts no files
	} {
		if got := full(&tt.st); got != tt.want {
			t.Errorf("%+v: %v", tt.st, got)
		}
	}
}

// Only a folder that is all ruapost's is given away with what is in it.
func TestOwnerMend(t *testing.T) {
	for _, tt := range []struct{ dir, file, want string }{
		{"/var/lib/ruapost", "/var/lib/ruapost/ruapost.db", "    chown -R ruapost: /var/lib/ruapost\n    chmod ug+rw /var/lib/ruapost/ruapost.db"},
		{"/var/lib/ruapost/outbox", "/var/lib/ruapost/outbox", "    chown -R ruapost: /var/lib/ruapost\n    chmod ug+rw /var/lib/ruapost/outbox"},
		{"/var/lib", "/var/lib/ruapost.db", "    chown ruapost: /var/lib/ruapost.db\n    chmod ug+rw /var/lib/ruapost.db"},
	} {
		if got := ownerMend(tt.dir, tt.file); got != tt.want {
			t.Errorf("%s: %q; want %q", tt.file, got, tt.want)
		}
	}
}

// What a user may not look at is not absent.
func TestStoreUnseen(t *testing.T) {
	w := newWorld(t)
	w.mode(w.dir, 0o755)
	if err := os.MkdirAll(w.path("shut/outbox"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.mode(w.path("shut"), 0)
	defer w.mode(w.path("shut"), 0o700)
	c := &checker{cfg: w.cfg}
	unprivileged(func() { c.checkFolder("the outbox", w.path("shut/outbox"), "no report can be composed") })
	w.expect(c.findings, "warning: the outbox DIR/shut/outbox cannot be looked at by user ... => Run this as root.")
}
