package maillog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"ruapost"
)

const (
	// maxRecord bounds an entry as journalctl writes it: a text with a control
	// character is a list of numbers.
	maxRecord = 64 << 10
	// maxCursor bounds a cursor. Those of systemd have some 150 octets.
	maxCursor = 1024
	// gatherTime is how long entries are gathered before they are delivered, and
	// maxGathered how many: those of one delivery belong together.
	gatherTime  = 500 * time.Millisecond
	maxGathered = 1000
	// stopTime is how long journalctl may take to end when it is told to.
	stopTime = 5 * time.Second
	// maxComplaints is how many lines journalctl may write to our log in each run.
	maxComplaints = 10
	// goodRun is how long it must have run to be started again without a pause.
	goodRun = time.Minute
)

// journalArgs are the options that journalctl is always started with: for the fields
// that are read, of everything logged with the facility mail, which is Postfix's.
// Without --merge it would leave out what was logged before the system was started.
var journalArgs = []string{
	"--follow", "--merge", "--no-pager", "--output=json",
	"--output-fields=_HOSTNAME,SYSLOG_IDENTIFIER,SYSLOG_PID,_PID,MESSAGE",
	"SYSLOG_FACILITY=2",
}

// Journal reads the systemd journal until ctx ends. The command is journalctl: alone
// for this machine's journal, or with options that say which one. It is started again
// when it ends.
//
// The position is a cursor of the journal. Without one it begins at the end, and also
// if journalctl does not take it.
func Journal(ctx context.Context, command []string, position string, deliver Deliver) {
	j := &journal{command: command, cursor: position, out: outlet{name: "journal", deliver: deliver}}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		began := time.Now()
		err := j.run(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > goodRun {
			pause = firstPause
		}
		sourceFaults.WithLabelValues("journal").Inc()
		slog.Warn("journalctl ended", "source", "journal", "pause", pause, "err", err)
		wait(ctx, pause)
	}
}

type journal struct {
	command []string
	cursor  string
	out     outlet
}

// record is an entry of the journal.
type record struct {
	entry  Entry
	cursor string
}

// run starts journalctl and reads what it writes until it ends.
func (j *journal) run(ctx context.Context) error {
	if len(j.command) == 0 {
		return errors.New("no command")
	}
	cmd := exec.CommandContext(ctx, j.command[0], j.args()...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	said := &complaints{}
	cmd.Stderr = said
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	records := make(chan record)
	go read(stdout, records)
	some := j.gather(ctx, records)
	stdout.Close()
	for range records { // until the reader has seen that
	}
	err = cmd.Wait()
	if err != nil && !some && j.cursor != "" && said.cursor.Load() {
		sourceFaults.WithLabelValues("lost").Inc()
		slog.Warn("journalctl does not take the position; going on at the journal's end", "source", "journal")
		j.cursor = ""
	}
	return err
}

func (j *journal) args() []string {
	args := slices.Concat(j.command[1:], journalArgs)
	if file, _ := os.ReadFile("/etc/machine-id"); len(j.command) == 1 {
		// There may be journals that other machines sent here.
		if id := strings.TrimSpace(string(file)); len(id) == 32 {
			args = append(args, "_MACHINE_ID="+id)
		}
	}
	if !isCursor(j.cursor) {
		j.cursor = ""
		return append(args, "--lines=0")
	}
	// Some versions show only ten entries after the cursor, unless told otherwise.
	return append(args, "--lines=all", "--after-cursor="+j.cursor)
}

// gather delivers what comes until the end. It says whether there was anything.
func (j *journal) gather(ctx context.Context, records <-chan record) (some bool) {
	for {
		var batch []Entry
		var full <-chan time.Time // once there is something
		cursor := ""
		for more := true; more && len(batch) < maxGathered; {
			select {
			case r, ok := <-records:
				if !ok {
					if cursor != "" {
						j.put(ctx, batch, cursor)
					}
					return some
				}
				some, cursor = true, r.cursor
				if r.entry.Name != "" {
					batch = append(batch, r.entry)
				}
				if full == nil {
					full = time.After(gatherTime)
				}
			case <-full:
				more = false
			case <-ctx.Done():
				return some
			}
		}
		if !j.put(ctx, batch, cursor) {
			return some
		}
	}
}

func (j *journal) put(ctx context.Context, batch []Entry, cursor string) bool {
	if !j.out.put(ctx, batch, cursor) {
		return false
	}
	j.cursor = cursor
	return true
}

// read reads journalctl's output. Entries that a Reader does not want have no Name.
func read(from io.Reader, records chan<- record) {
	defer close(records)
	b := bufio.NewReaderSize(from, maxRecord)
	for {
		line, err := b.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			linesLong.Inc()
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = b.ReadSlice('\n')
			}
			line = nil
		}
		if r, ok := parseRecord(line); ok {
			if r.entry.Name == "" {
				linesForeign.Inc()
			}
			records <- r
		}
		if err != nil {
			return
		}
	}
}

// parseRecord reads an entry as --output=json has it (systemd's Journal JSON Format).
func parseRecord(line []byte) (r record, ok bool) {
	var fields struct {
		Cursor     field `json:"__CURSOR"`
		Time       field `json:"__REALTIME_TIMESTAMP"` // microseconds
		Host       field `json:"_HOSTNAME"`
		Identifier field `json:"SYSLOG_IDENTIFIER"`
		SyslogPID  field `json:"SYSLOG_PID"`
		PID        field `json:"_PID"`
		Message    field `json:"MESSAGE"`
	}
	if err := json.Unmarshal(line, &fields); err != nil || !isCursor(string(fields.Cursor)) {
		return r, false
	}
	r.cursor = string(fields.Cursor)
	number := fields.SyslogPID
	if number == "" {
		number = fields.PID // of a program that logs without one
	}
	pid, pidErr := strconv.ParseUint(string(number), 10, 31)
	micros, timeErr := strconv.ParseInt(string(fields.Time), 10, 64)
	if errors.Join(pidErr, timeErr) != nil || program(string(fields.Identifier)) == "" || fields.Message == "" {
		return r, true
	}
	r.entry = Entry{
		Time: time.UnixMicro(micros), Host: string(fields.Host), Name: string(fields.Identifier),
		PID: int(pid), Text: string(fields.Message),
	}
	return r, true
}

// field is a field's value: a string; a list of octets if it is not all printable
// UTF-8; a list of those if there are several, of which the first is taken; or null if
// it is too long.
type field string

func (f *field) UnmarshalJSON(data []byte) error {
	if f.one(data) {
		return nil
	}
	var several []json.RawMessage
	if json.Unmarshal(data, &several) == nil && len(several) > 0 && f.one(several[0]) {
		return nil
	}
	*f = "" // nothing that is read here
	return nil
}

// one reads a single value.
func (f *field) one(data []byte) bool {
	var octets []uint16 // JSON's text form of a []byte is another
	if json.Unmarshal(data, (*string)(f)) == nil {
		return true // null leaves it empty
	}
	if json.Unmarshal(data, &octets) != nil {
		return false
	}
	text := make([]byte, len(octets))
	for i, octet := range octets {
		text[i] = byte(octet)
	}
	*f = field(text)
	return true
}

// isCursor says whether s can be one, and so may be an argument and be kept.
func isCursor(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= maxCursor
}

// complaints is what journalctl writes to stderr: it goes to our log, up to a limit.
type complaints struct {
	lines  int
	cursor atomic.Bool // one was about the cursor
}

func (c *complaints) Write(text []byte) (int, error) {
	for line := range bytes.Lines(text) {
		said := ruapost.Clean(string(line), 300)
		if strings.Contains(strings.ToLower(said), "cursor") {
			c.cursor.Store(true)
		}
		if c.lines++; c.lines <= maxComplaints && said != "" {
			slog.Warn("journalctl says", "source", "journal", "text", said)
		}
	}
	return len(text), nil
}
