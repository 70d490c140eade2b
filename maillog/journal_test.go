package maillog

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestParseRecord(t *testing.T) {
	const begin = `{"__CURSOR":"s=1;i=2","__REALTIME_TIMESTAMP":"1795608000123456","_HOSTNAME":"host","_BOOT_ID":"1",`
	smtp := record{
		entry:  Entry{Time: time.UnixMicro(1795608000123456), Host: "host", Name: "postfix/smtp", PID: 123, Text: "text"},
		cursor: "s=1;i=2",
	}
	binary := smtp
	binary.entry.Text = "bin\x01ary \xff"
	foreign := record{cursor: "s=1;i=2"}
	tests := []struct {
		name, line string
		want       *record
	}{
		{"strings", begin + `"SYSLOG_IDENTIFIER":"postfix/smtp","SYSLOG_PID":"123","_PID":"1","MESSAGE":"text"}`, &smtp},
		{"without SYSLOG_PID", begin + `"SYSLOG_IDENTIFIER":"postfix/smtp","_PID":"123","MESSAGE":"text"}`, &smtp},
		{"octets", begin + `"SYSLOG_IDENTIFIER":"postfix/smtp","_PID":"123","MESSAGE":[98,105,110,1,97,114,121,32,255]}`, &binary},
		{"several values", begin + `"SYSLOG_IDENTIFIER":["postfix/smtp","other"],"SYSLOG_PID":["123","456"],"MESSAGE":[[98,105,110,1,97,114,121,32,255],"other"]}`, &binary},

		{"another program", begin + `"SYSLOG_IDENTIFIER":"postfix/smtpd","_PID":"123","MESSAGE":"text"}`, &foreign},
		{"too long a text", begin + `"SYSLOG_IDENTIFIER":"postfix/smtp","_PID":"123","MESSAGE":null}`, &foreign},
		{"no process number", begin + `"SYSLOG_IDENTIFIER":"postfix/smtp","MESSAGE":"text"}`, &foreign},
		{"odd values", begin + `"SYSLOG_IDENTIFIER":{"a":1},"_PID":123,"MESSAGE":[[[1]],[]]}`, &foreign},
		{"empty lists", begin + `"SYSLOG_IDENTIFIER":"postfix/smtp","_PID":[],"MESSAGE":[]}`, &foreign},
		{"no time", `{"__CURSOR":"s=1;i=2","SYSLOG_IDENTIFIER":"postfix/smtp","_PID":"123","MESSAGE":"text"}`, &foreign},

		{"no cursor", `{"__REALTIME_TIMESTAMP":"1795608000123456","MESSAGE":"text"}`, nil},
		{"cursor with a blank", `{"__CURSOR":"s=1 --file=x"}`, nil},
		{"very long cursor", `{"__CURSOR":"` + strings.Repeat("s", maxCursor+1) + `"}`, nil},
		{"no JSON", "-- Boot 0123 --", nil},
		{"cut off", begin, nil},
		{"nothing", "", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := parseRecord([]byte(test.line))
			if ok != (test.want != nil) || ok && got != *test.want {
				t.Errorf("got %+v, %v", got, ok)
			}
		})
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"__CURSOR":"s=1;i=2","__REALTIME_TIMESTAMP":"1795608000123456","SYSLOG_IDENTIFIER":"postfix/smtp","_PID":["1"],"MESSAGE":[[98],"x"]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, ok := parseRecord(line)
		if ok && (!isCursor(r.cursor) || r.entry.Name != "" && (program(r.entry.Name) == "" || r.entry.PID < 0 || r.entry.Text == "")) {
			t.Errorf("%q: %+v", line, r)
		}
	})
}

// batch is what was delivered in one call.
type batch struct {
	texts, cursor string
}

// recorded is an entry of the journal as journalctl writes it.
func recorded(cursor, text string) string {
	line, err := json.Marshal(map[string]string{
		"__CURSOR": cursor, "__REALTIME_TIMESTAMP": "1795608000123456", "_HOSTNAME": "host",
		"SYSLOG_IDENTIFIER": "postfix/smtp", "SYSLOG_PID": "123", "MESSAGE": text,
	})
	if err != nil {
		panic(err)
	}
	return string(line)
}

// script is a shell script in journalctl's place. It writes its arguments to the file
// args beside it, one run a line.
func script(t *testing.T, body string) (command []string, args func() []string) {
	t.Helper()
	dir := t.TempDir()
	path, log := filepath.Join(dir, "journalctl"), filepath.Join(dir, "args")
	text := "#!/bin/sh\necho \"$*\" >>'" + log + "'\n" + body
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{"/bin/sh", path}, func() []string {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}
}

// startJournal runs Journal; stop ends it.
func startJournal(t *testing.T, command []string, position string) (delivered <-chan batch, stop func()) {
	t.Helper()
	batches := make(chan batch)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Journal(ctx, command, position, func(entries []Entry, position string) error {
			var texts []string
			for _, e := range entries {
				texts = append(texts, e.Text)
			}
			select {
			case batches <- batch{strings.Join(texts, " "), position}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("Journal does not end")
		}
	}
	t.Cleanup(stop)
	return batches, stop
}

// next returns the next of what is delivered.
func next(t *testing.T, delivered <-chan batch) batch {
	t.Helper()
	select {
	case b := <-delivered:
		return b
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is delivered")
	}
	return batch{}
}

func TestJournal(t *testing.T) {
	command, args := script(t, `
cat <<'END'
-- Boot 0123 --
`+recorded("c1", "one")+`
`+strings.ReplaceAll(recorded("c2", "foreign"), "postfix/smtp", "postfix/smtpd")+`
`+recorded("c3", strings.Repeat("x", maxRecord))+`
`+recorded("c4", "two")+`
{"__CURSOR":
END
exec tail -f /dev/null
`)
	delivered, stop := startJournal(t, command, "")
	var texts string
	for got := (batch{}); got.cursor != "c4"; {
		got = next(t, delivered)
		texts = strings.TrimSpace(texts + " " + got.texts)
	}
	if texts != "one two" {
		t.Errorf("delivered %q", texts)
	}
	stop()
	if got := args(); len(got) != 1 || !strings.Contains(got[0], "--follow --merge ") || !strings.Contains(got[0], " SYSLOG_FACILITY=2 ") ||
		!strings.HasSuffix(got[0], " --lines=0") {
		t.Errorf("arguments %q", got)
	}
}

// A journalctl that ends is started again where it was.
func TestJournalRestart(t *testing.T) {
	command, args := script(t, `
case "$*" in
*--after-cursor=c0) echo '`+recorded("c1", "one")+`'; exit 1 ;;
*--after-cursor=c1) echo '`+recorded("c2", "two")+`'; kill -9 $$ ;;
*) exec tail -f /dev/null ;;
esac
`)
	delivered, stop := startJournal(t, command, "c0")
	got := []batch{next(t, delivered), next(t, delivered)}
	if diff := cmp.Diff([]batch{{"one", "c1"}, {"two", "c2"}}, got, cmp.AllowUnexported(batch{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	eventually(t, "third run", func() bool { return len(args()) == 3 })
	stop()
	if last := args()[2]; !strings.HasSuffix(last, " --lines=all --after-cursor=c2") {
		t.Errorf("third run with %s", last)
	}
}

// A cursor is given up if journalctl says that it is to blame, and else kept.
func TestJournalCursor(t *testing.T) {
	for _, test := range []struct {
		says string
		lost bool
	}{{"Failed to seek to cursor: Invalid argument", true}, {"Failed to open journal: Permission denied", false}} {
		t.Run(test.says, func(t *testing.T) {
			command, args := script(t, `
case $(wc -l <"$(dirname "$0")/args") in
1) echo '`+test.says+`' >&2; exit 1 ;;
esac
echo '`+recorded("c9", "one")+`'
exec tail -f /dev/null
`)
			delivered, stop := startJournal(t, command, "c0")
			if got := next(t, delivered); got != (batch{"one", "c9"}) {
				t.Errorf("delivered %+v", got)
			}
			stop()
			got := args()
			if len(got) != 2 || !strings.HasSuffix(got[0], "--after-cursor=c0") || strings.Contains(got[1], "cursor") == test.lost {
				t.Errorf("runs with %q", got)
			}
		})
	}
}

// TestJournalCtl has the real journalctl, where there is one, take the options, follow
// a journal without entries and refuse what is no cursor.
func TestJournalCtl(t *testing.T) {
	path, err := exec.LookPath("journalctl")
	if err != nil {
		t.Log("no journalctl here")
		return
	}
	lost, ended := sourceFaults.WithLabelValues("lost"), sourceFaults.WithLabelValues("journal")
	before, endedBefore := testutil.ToFloat64(lost), testutil.ToFloat64(ended)
	command := []string{path, "--directory=" + t.TempDir()}
	_, stop := startJournal(t, command, "no-cursor")
	eventually(t, "the cursor is refused", func() bool { return testutil.ToFloat64(lost) == before+1 })
	eventually(t, "it is started again", func() bool { return children(t, command[1]) == 1 })
	stop()
	if n := testutil.ToFloat64(ended) - endedBefore; n != 1 {
		t.Errorf("journalctl ended %v times", n)
	}
	if n := children(t, command[1]); n != 0 {
		t.Errorf("%d of journalctl are left", n)
	}
}

// children returns how many processes have this argument.
func children(t *testing.T, arg string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, _ := os.ReadFile(file) // it may be gone
		if slices.Contains(strings.Split(string(data), "\x00"), arg) {
			n++
		}
	}
	return n
}

// eventually waits for what another process does.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("in vain: " + what)
}

// Nothing can be started, for ever: ctx ends it.
func TestJournalMissing(t *testing.T) {
	for _, command := range [][]string{nil, {filepath.Join(t.TempDir(), "journalctl")}} {
		t.Run(fmt.Sprint(len(command)), func(t *testing.T) {
			ended := sourceFaults.WithLabelValues("journal")
			before := testutil.ToFloat64(ended)
			_, stop := startJournal(t, command, "")
			eventually(t, "it fails", func() bool { return testutil.ToFloat64(ended) > before })
			stop()
		})
	}
}
