package check

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
