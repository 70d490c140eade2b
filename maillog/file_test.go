package maillog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// keeper is who the lines are delivered to: it keeps them with the position, or fails.
type keeper struct {
	mu       sync.Mutex
	texts    []string
	position string
	calls    int
	fail     bool
}

func (k *keeper) deliver(entries []Entry, position string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	if k.fail {
		return errors.New("disk full")
	}
	for _, e := range entries {
		k.texts = append(k.texts, e.Text)
	}
	k.position = position
	return nil
}

// take returns the texts since the last call.
func (k *keeper) take() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer func() { k.texts = nil }()
	return strings.Join(k.texts, " ")
}

// setFail has further deliveries fail or not. It returns the number of those so far.
func (k *keeper) setFail(fail bool) (calls int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = fail
	return k.calls
}

// at returns the position that is kept, and the number of deliveries.
func (k *keeper) at() (position string, calls int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.position, k.calls
}

// logFile is a log file in a folder of its own, which is followed within a bubble of
// testing/synctest.
type logFile struct {
	t    *testing.T
	path string
	keeper
	stop func()
}

func newLogFile(t *testing.T, text string) *logFile {
	l := &logFile{t: t, path: filepath.Join(t.TempDir(), "mail.log")}
	l.append(l.path, text)
	return l
}

// start follows the file from where it was followed before.
func (l *logFile) start() {
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		position, _ := l.at()
		Follow(ctx, l.path, position, l.deliver)
	}()
	l.stop = func() { cancel(); <-done }
	synctest.Wait()
}

// poll waits until the file was looked at again.
func (l *logFile) poll() {
	time.Sleep(pollEach)
	synctest.Wait()
}

// line is a line of smtp's.
func line(text string) string { return "Nov 25 12:00:00 host postfix/smtp[1]: " + text + "\n" }

func (l *logFile) append(path, text string) {
	l.t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logFile) rename(from, to string) {
	l.t.Helper()
	if err := os.Rename(from, to); err != nil {
		l.t.Fatal(err)
	}
}

// copyTruncate is what logrotate does with that option.
func (l *logFile) copyTruncate() {
	l.t.Helper()
	data, err := os.ReadFile(l.path)
	if err != nil {
		l.t.Fatal(err)
	}
	l.append(l.path+".1", string(data))
	if err := os.Truncate(l.path, 0); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logFile) want(texts string) {
	l.t.Helper()
	if got := l.take(); got != texts {
		l.t.Errorf("delivered %q, want %q", got, texts)
	}
}

func TestFollow(t *testing.T) {
	tests := []struct {
		name string
		run  func(l *logFile)
	}{
		{"begins at the end", func(l *logFile) {
			l.start()
			l.want("")
			l.append(l.path, line("one")+"Nov 25 12:00:00 host postfix/smtpd[1]: foreign\n"+line("two"))
			l.poll()
			l.want("one two")
		}},
		{"begins at the end of the last whole line", func(l *logFile) {
			l.append(l.path, strings.TrimSuffix(line("on"), "n\n"))
			l.start()
			l.append(l.path, "e\n")
			l.poll()
			l.want("oe")
		}},
		{"a line in parts", func(l *logFile) {
			l.start()
			for i, c := range line("one") {
				if i%5 == 0 {
					l.poll()
				}
				l.want("")
				l.append(l.path, string(c))
			}
			l.poll()
			l.want("one")
		}},
		{"renamed, and the next one created", func(l *logFile) {
			l.start()
			l.append(l.path, line("one"))
			l.rename(l.path, l.path+".1")
			l.append(l.path+".1", line("two"))
			l.poll()
			l.want("one two")
			// The writer still has the old one open, although logrotate made the next.
			l.append(l.path, "")
			l.poll()
			l.append(l.path+".1", line("three"))
			l.poll()
			l.want("three")
			l.append(l.path+".1", line("four")+strings.TrimSuffix(line("no end"), "\n"))
			l.append(l.path, line("five"))
			l.poll()
			l.want("four no end five")
			l.append(l.path, line("six"))
			l.poll()
			l.want("six")
		}},
		{"renamed twice between two looks", func(l *logFile) {
			l.start()
			l.append(l.path, line("one"))
			l.rename(l.path, l.path+".1")
			l.rename(l.path+".1", l.path+".2")
			l.append(l.path, line("two"))
			l.poll()
			l.want("one two")
		}},
		{"removed for a while", func(l *logFile) {
			l.start()
			if err := os.Remove(l.path); err != nil {
				l.t.Fatal(err)
			}
			l.poll()
			l.append(l.path, line("one"))
			l.poll()
			l.want("one")
		}},
		{"truncated", func(l *logFile) {
			l.start()
			l.append(l.path, line("one"))
			l.poll()
			l.copyTruncate()
			l.poll()
			l.append(l.path, line("two"))
			l.poll()
			l.want("one two")
		}},
		{"truncated, and longer than before at once", func(l *logFile) {
			l.start()
			l.copyTruncate()
			l.append(l.path, line("one")+line("two")+line("three")+line("four"))
			l.poll()
			l.want("one two three four")
		}},
		{"a line that is too long", func(l *logFile) {
			l.start()
			l.append(l.path, line("one")+line(strings.Repeat("x", MaxLine))+line("two"))
			l.poll()
			l.want("one two")
		}},
		{"a line longer than what is read at once", func(l *logFile) {
			l.start()
			l.append(l.path, line("one"))
			l.poll()
			l.want("one")
			l.append(l.path, strings.Repeat("x", readBuffer))
			l.poll()
			l.append(l.path, strings.Repeat("x", readBuffer))
			l.poll()
			l.append(l.path, line("its end")+line("two"))
			l.poll()
			l.want("two")
		}},
		{"much at once", func(l *logFile) {
			l.start()
			var text strings.Builder
			var want []string
			for i := range 20_000 {
				want = append(want, fmt.Sprint(i))
				text.WriteString(line(want[i]))
			}
			l.append(l.path, text.String())
			l.poll()
			l.want(strings.Join(want, " "))
		}},

		{"restart", func(l *logFile) {
			l.start()
			l.append(l.path, line("one"))
			l.poll()
			l.stop()
			l.append(l.path, line("two"))
			l.start()
			l.want("one two")
		}},
		{"restart before anything was read", func(l *logFile) {
			l.start()
			l.stop()
			l.append(l.path, line("one"))
			l.start()
			l.want("one")
		}},
		{"renamed meanwhile", func(l *logFile) {
			l.start()
			l.stop()
			l.append(l.path, line("one"))
			l.rename(l.path, l.path+".1")
			l.append(l.path+".0", "other\n")
			l.append(l.path, line("two"))
			l.start()
			l.want("one two")
			l.append(l.path, line("three"))
			l.poll()
			l.want("three")
		}},
		{"renamed meanwhile, no next one yet", func(l *logFile) {
			l.start()
			l.stop()
			l.append(l.path, line("one"))
			l.rename(l.path, l.path+"-20261125")
			l.start()
			l.want("one")
			l.append(l.path, line("two"))
			l.poll()
			l.want("two")
		}},
		{"truncated meanwhile", func(l *logFile) {
			l.start()
			l.stop()
			l.append(l.path, line("one"))
			l.copyTruncate()
			l.append(l.path, line("two")+line("three")+line("four"))
			l.start()
			l.want("one two three four")
		}},
		{"rotated and compressed meanwhile", func(l *logFile) {
			l.start()
			l.stop()
			if err := os.Remove(l.path); err != nil {
				l.t.Fatal(err)
			}
			l.append(l.path+".1.gz", "\x1f\x8b")
			l.append(l.path, line("two"))
			l.start()
			l.want("two")
		}},
		{"copied to another disk meanwhile", func(l *logFile) {
			l.start()
			l.stop()
			l.copyTruncate()
			if err := os.Remove(l.path); err != nil {
				l.t.Fatal(err)
			}
			l.rename(l.path+".1", l.path)
			l.append(l.path, line("one"))
			l.start()
			l.want("one")
		}},
		{"missing at first", func(l *logFile) {
			if err := os.Remove(l.path); err != nil {
				l.t.Fatal(err)
			}
			l.start()
			l.poll()
			l.append(l.path, line("one"))
			l.poll()
			l.want("one")
		}},
		{"not a file at first", func(l *logFile) {
			if err := errors.Join(os.Remove(l.path), os.Mkdir(l.path, 0o700)); err != nil {
				l.t.Fatal(err)
			}
			unreadable := sourceFaults.WithLabelValues("file")
			before := testutil.ToFloat64(unreadable)
			l.start()
			l.poll()
			once := testutil.ToFloat64(unreadable)
			l.poll()
			if again := testutil.ToFloat64(unreadable); once == before || again == once {
				l.t.Errorf("counted from %v to %v, then to %v: it must go on as long as the fault does", before, once, again)
			}
			if err := os.Remove(l.path); err != nil {
				l.t.Fatal(err)
			}
			l.append(l.path, line("one"))
			l.poll()
			l.want("one")
		}},
		{"the position of something else", func(l *logFile) {
			l.position = "s=0123;i=1"
			l.start()
			l.append(l.path, line("one"))
			l.poll()
			l.want("one")
		}},
		{"what is not kept is delivered again", func(l *logFile) {
			l.start()
			before := l.setFail(true)
			l.append(l.path, line("one"))
			l.poll()
			l.append(l.path, line("two"))
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if tries := l.setFail(false) - before; tries != 4 { // with pauses of 1, 2, 4 and 8 s
				l.t.Errorf("%d tries", tries)
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			l.want("one two")
		}},
		{"what was not kept is read again after a restart", func(l *logFile) {
			l.start()
			l.setFail(true)
			l.append(l.path, line("one"))
			l.poll()
			l.stop()
			l.setFail(false)
			l.start()
			l.want("one")
		}},
		{"the position goes on without entries", func(l *logFile) {
			l.start()
			before, calls := l.at()
			l.append(l.path, "Nov 25 12:00:00 host postfix/smtpd[1]: foreign\n")
			l.poll()
			if _, now := l.at(); now != calls {
				l.t.Error("delivered at once")
			}
			time.Sleep(positionEach)
			synctest.Wait()
			if position, now := l.at(); position == before || now != calls+1 {
				l.t.Errorf("%d more calls", now-calls)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLogFile(t, line("a line from before, long enough to tell the file from others"))
				test.run(l)
				l.stop()
			})
		})
	}
}

// FuzzPosition checks that no position makes Follow fail, and that it finds its own.
func FuzzPosition(f *testing.F) {
	f.Add("1:12345:10:10:0123456789abcdef", "text\n")
	f.Add("1:0:0:0:e3b0c44298fc1c14", "")
	f.Add("1:1:9223372036854775807:512:x", "text\n")
	f.Fuzz(func(t *testing.T, position, text string) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if pos, ok := parsePosition(position); ok {
			pos.in(file)
			if again, ok := parsePosition(pos.String()); !ok || again != pos {
				t.Errorf("%q: %+v is written %s", position, pos, pos)
			}
		}
		fw := &follower{path: path}
		fw.use(file, int64(len(text)))
		if pos, ok := parsePosition(fw.position()); !ok || !pos.in(file) {
			t.Errorf("%s does not lead back", fw.position())
		}
	})
}

// TestRecent has the bounded map keep what came last.
func TestRecent(t *testing.T) {
	r := newRecent[string, int](2)
	r.put("a", 1)
	r.put("b", 2)
	r.put("a", 3)
	gone, full := r.put("c", 4)
	if !full || gone != 2 {
		t.Errorf("%d, %v went", gone, full)
	}
	r.remove("a")
	r.remove("x")
	if _, full := r.put("d", 5); full {
		t.Error("full with one")
	}
	var keys []string
	for key := range r.items {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	if diff := cmp.Diff([]string{"c", "d"}, keys); diff != "" || r.order.Len() != 2 {
		t.Error(diff)
	}
	if _, ok := r.get("a"); ok {
		t.Error("a is still there")
	}
}
