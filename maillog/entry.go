package maillog

import (
	"strconv"
	"strings"
	"time"
)

// MaxLine is the longest line that is read, in octets. Postfix cuts its own at 2,000
// and what stands before them.
const MaxLine = 8 << 10

// Entry is a line that one of Postfix's programs logged, taken apart.
type Entry struct {
	Time time.Time
	// Host is the machine as the log names it, Name Postfix's syslog_name with the
	// program: "postfix/smtp", "postfix/relay/smtp", "postfix-out/smtp".
	Host string
	Name string
	PID  int
	Text string
}

// The programs whose lines mean something here, by the last part of Entry.Name.
const (
	programSMTP     = "smtp"
	programQmgr     = "qmgr"
	programTLSProxy = "tlsproxy"
)

// program returns the last part of a syslog name, "" if it is not one of those above.
// A name of one part is not Postfix's.
func program(name string) string {
	slash := strings.LastIndexByte(name, '/')
	if slash < 0 {
		return ""
	}
	switch p := name[slash+1:]; p {
	case programSMTP, programQmgr, programTLSProxy:
		return p
	}
	return ""
}

// ParseLine takes a line of a log file apart, if it is from a program that a Reader
// wants to hear of:
//
//	Nov 25 12:00:00 host postfix/smtp[123]: text
//	2026-11-25T12:00:00.123456+00:00 host postfix/smtp[123]: text
//	<22>Nov 25 12:00:00 host postfix/smtp[123]: text
//
// A time without year and zone is that in now's zone nearest to now that is not more
// than a day after it.
func ParseLine(line string, now time.Time) (Entry, bool) {
	if len(line) > MaxLine {
		return Entry{}, false
	}
	stamp, rest := cutStamp(cutPriority(line))
	host, rest, _ := strings.Cut(rest, " ")
	tag, text, ok := strings.Cut(rest, ": ")
	if !ok || stamp == "" || host == "" {
		return Entry{}, false
	}
	name, number, ok := strings.Cut(tag, "[")
	if !ok || program(name) == "" {
		return Entry{}, false // before anything that costs: nearly all lines end here
	}
	pid, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 31)
	if err != nil || !strings.HasSuffix(number, "]") || strings.Contains(name, " ") {
		return Entry{}, false
	}
	at, ok := parseStamp(stamp, now)
	return Entry{Time: at, Host: host, Name: name, PID: int(pid), Text: text}, ok
}

// cutPriority cuts the "<22>" that stands before lines as they go over the network.
func cutPriority(line string) string {
	if !strings.HasPrefix(line, "<") {
		return line
	}
	if end := strings.IndexByte(line[:min(len(line), len("<191>"))], '>'); end > 0 {
		return line[end+1:]
	}
	return line
}

// cutStamp cuts the time, "" if there is none at the beginning.
func cutStamp(line string) (stamp, rest string) {
	if line == "" || line[0] >= '0' && line[0] <= '9' {
		stamp, rest, _ = strings.Cut(line, " ")
		return stamp, rest
	}
	if n := len(time.Stamp); len(line) > n && line[n] == ' ' {
		return line[:n], line[n+1:]
	}
	return "", ""
}

func parseStamp(stamp string, now time.Time) (time.Time, bool) {
	if stamp[0] >= '0' && stamp[0] <= '9' {
		t, err := time.Parse(time.RFC3339, stamp)
		return t, err == nil
	}
	t, err := time.Parse(time.Stamp, stamp) // in the year 0, a leap year
	if err != nil {
		return time.Time{}, false
	}
	for year := now.Year() + 1; year >= now.Year()-4; year-- {
		at := time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
		if at.Day() == t.Day() && at.Sub(now) <= 24*time.Hour {
			return at, true
		}
	}
	return time.Time{}, false
}
