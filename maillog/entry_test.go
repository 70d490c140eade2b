package maillog

import (
	"strings"
	"testing"
	"time"
)

func TestParseLine(t *testing.T) {
	zone := time.FixedZone("", 3600)
	now := time.Date(2026, 11, 25, 13, 0, 0, 0, zone)
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, zone)
	entry := func(at time.Time, name string) *Entry {
		return &Entry{Time: at, Host: "host", Name: name, PID: 123, Text: "to: <text>"}
	}
	tests := []struct {
		name, line string
		want       *Entry
	}{
		{"RFC 3164 time", "Nov 25 12:00:00 host postfix/smtp[123]: to: <text>", entry(at, "postfix/smtp")},
		{"day of one digit", "Nov  5 12:00:00 host postfix/smtp[123]: to: <text>", entry(at.AddDate(0, 0, -20), "postfix/smtp")},
		{"RFC 3339 time", "2026-11-25T12:00:00+01:00 host postfix/smtp[123]: to: <text>", entry(at, "postfix/smtp")},
		{"with a fraction", "2026-11-25T11:00:00.123456Z host postfix/smtp[123]: to: <text>", entry(at.Add(123456*time.Microsecond), "postfix/smtp")},
		{"with a priority", "<22>Nov 25 12:00:00 host postfix/smtp[123]: to: <text>", entry(at, "postfix/smtp")},
		{"with a priority and RFC 3339 time", "<22>2026-11-25T12:00:00.000+01:00 host postfix/smtp[123]: to: <text>", entry(at, "postfix/smtp")},
		{"syslog_name of a service", "Nov 25 12:00:00 host postfix/relay/smtp[123]: to: <text>", entry(at, "postfix/relay/smtp")},
		{"syslog_name of an instance", "Nov 25 12:00:00 host postfix-out/smtp[123]: to: <text>", entry(at, "postfix-out/smtp")},
		{"qmgr", "Nov 25 12:00:00 host postfix/qmgr[123]: to: <text>", entry(at, "postfix/qmgr")},
		{"tlsproxy", "Nov 25 12:00:00 host postfix/tlsproxy[123]: to: <text>", entry(at, "postfix/tlsproxy")},

		{"smtpd", "Nov 25 12:00:00 host postfix/smtpd[123]: text", nil},
		{"lmtp", "Nov 25 12:00:00 host postfix/lmtp[123]: text", nil},
		{"name of one part", "Nov 25 12:00:00 host smtp[123]: text", nil},
		{"smtp in the text", "Nov 25 12:00:00 host sshd[123]: user postfix/smtp[123]: text", nil},
		{"smtp after a blank", "Nov 25 12:00:00 host evil postfix/smtp[123]: text", nil},
		{"no process number", "Nov 25 12:00:00 host postfix/smtp: text", nil},
		{"open bracket", "Nov 25 12:00:00 host postfix/smtp[123: text", nil},
		{"negative process number", "Nov 25 12:00:00 host postfix/smtp[-1]: text", nil},
		{"very large process number", "Nov 25 12:00:00 host postfix/smtp[99999999999]: text", nil},
		{"no text", "Nov 25 12:00:00 host postfix/smtp[123]:", nil},
		{"no host", "Nov 25 12:00:00 postfix/smtp[123]: text", nil},
		{"empty host", "Nov 25 12:00:00  postfix/smtp[123]: text", nil},
		{"repetition", "Nov 25 12:00:00 host last message repeated 3 times", nil},
		{"no such time", "Nov 25 25:00:00 host postfix/smtp[123]: text", nil},
		{"no such month", "Nox 25 12:00:00 host postfix/smtp[123]: text", nil},
		{"time without zone", "2026-11-25T12:00:00 host postfix/smtp[123]: text", nil},
		{"open priority", "<22Nov 25 12:00:00 host postfix/smtp[123]: text", nil},
		{"nothing", "", nil},
		{"bracket only", "<", nil},
		{"time only", "Nov 25 12:00:00", nil},
		{"as long as it may be", "Nov 25 12:00:00 host postfix/smtp[123]: " + strings.Repeat("x", MaxLine-40), &Entry{
			Time: at, Host: "host", Name: "postfix/smtp", PID: 123, Text: strings.Repeat("x", MaxLine-40),
		}},
		{"too long", "Nov 25 12:00:00 host postfix/smtp[123]: " + strings.Repeat("x", MaxLine-39), nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := ParseLine(test.line, now)
			switch {
			case test.want == nil && ok:
				t.Errorf("got %.200v", got)
			case test.want != nil:
				same := got.Time.Equal(test.want.Time)
				if got.Time = test.want.Time; !ok || !same || got != *test.want {
					t.Errorf("got %.200v %v, time right: %v", got, ok, same)
				}
			}
		})
	}
}

// A time without a year is that nearest to now that is not long after it.
func TestYear(t *testing.T) {
	date := func(year int, month time.Month, day, hour int) time.Time {
		return time.Date(year, month, day, hour, 0, 0, 0, time.UTC)
	}
	for _, test := range []struct {
		stamp string
		now   time.Time
		want  time.Time
	}{
		{"Nov 25 12:00:00", date(2026, 11, 25, 12), date(2026, 11, 25, 12)},
		{"Nov 25 13:00:00", date(2026, 11, 25, 12), date(2026, 11, 25, 13)}, // clocks differ
		{"Nov 27 12:00:00", date(2026, 11, 25, 12), date(2025, 11, 27, 12)},
		{"Dec 31 23:00:00", date(2027, 1, 1, 0), date(2026, 12, 31, 23)},
		{"Jan  1 00:00:00", date(2026, 12, 31, 23), date(2027, 1, 1, 0)},
		{"Feb 29 12:00:00", date(2026, 3, 1, 0), date(2024, 2, 29, 12)},
	} {
		if got, ok := parseStamp(test.stamp, test.now); !ok || !got.Equal(test.want) {
			t.Errorf("%s seen %v: %v, want %v", test.stamp, test.now, got, test.want)
		}
	}
}

// FuzzParseLine checks that an entry is what its line says.
func FuzzParseLine(f *testing.F) {
	f.Add("Nov 25 12:00:00 host postfix/smtp[123]: text")
	f.Add("<22>2026-11-25T12:00:00.123456+00:00 host postfix-out/qmgr[1]: text")
	f.Fuzz(func(t *testing.T, line string) {
		e, ok := ParseLine(line, noon)
		if !ok {
			return
		}
		if program(e.Name) == "" || e.PID < 0 || e.Host == "" || e.Time.IsZero() || !strings.HasSuffix(line, "]: "+e.Text) {
			t.Errorf("%q: %+v", line, e)
		}
	})
}
