package socketmap

import (
	"strings"
	"testing"
)

func TestReplyOnTheWire(t *testing.T) {
	long := strings.Repeat("x", MaxReply-len("OK "))
	tests := []struct {
		name  string
		reply Reply
		want  string
	}{
		{"value", OK("secure match=mx1.good.lab:.good.lab servername=hostname"), "58:OK secure match=mx1.good.lab:.good.lab servername=hostname,"},
		{"zero value", Reply{}, "9:NOTFOUND ,"},
		{"not found", NotFound(), "9:NOTFOUND ,"},
		{"temp", Temp("resolver timeout"), "21:TEMP resolver timeout,"},
		{"timeout", Timeout("no"), "10:TIMEOUT no,"},
		{"perm", Perm("no map X"), "13:PERM no map X,"},
		{"OK without a value is a lookup error in Postfix", OK(""), "9:NOTFOUND ,"},
		{"OK with blanks only is an empty policy", OK("  "), "9:NOTFOUND ,"},
		{"value with a line feed", OK("may\nnone"), "9:NOTFOUND ,"},
		{"value with NUL", OK("may\x00"), "9:NOTFOUND ,"},
		{"value with UTF-8", OK("secure match=müller.example"), "9:NOTFOUND ,"},
		{"longest value", OK(long), "99999:OK " + long + ","},
		{"value too long", OK(long + "x"), "9:NOTFOUND ,"},
		{"reason with controls", Temp("a\r\n\x00b\x7f"), "10:TEMP a   b,"},
		{"reason with UTF-8", Temp("zürich\xff!"), "13:TEMP z?rich !,"},
		{"reason too long", Temp(strings.Repeat("r", 300)), "205:TEMP " + strings.Repeat("r", 200) + ","},
		{"no reason", Temp(""), "5:TEMP ,"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := string(test.reply.appendTo(nil)); got != test.want {
				t.Errorf("got  %.300q\nwant %.300q", got, test.want)
			}
		})
	}
}
