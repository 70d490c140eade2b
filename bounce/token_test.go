package bounce

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

const (
	reportID  = "0123456789abcdef0123456789abcdef"
	recipient = "dmarc@peer.example"
)

var secret = []byte("0123456789abcdef0123456789abcdef")

// sender is Sender with arguments that are known to be good.
func sender(t testing.TB, from, delimiter string) string {
	t.Helper()
	address, err := Sender(secret, from, delimiter, reportID, recipient)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func TestSender(t *testing.T) {
	address := sender(t, "reports@example.org", "+")
	// Addresses are in queues and in other people's logs for weeks: their form is for ever.
	const want = "reports+aerukz4jvpg66ajdivtytk6n55vd4qq2muyoreyhu27a@example.org"
	if address != want {
		t.Errorf("got %s, want %s", address, want)
	}
	upper := strings.ToUpper(address)
	for _, read := range []string{address, upper} {
		token, ok := ParseToken("Reports@example.ORG", "+", "", "reports@example.org", read, "reports+x@example.org")
		if !ok || token.Report != reportID || !token.Verify(secret, recipient) {
			t.Errorf("%s: %+v %v", read, token, ok)
		}
	}
}

// RFC 5321 4.5.3.1.1: a local part has 64 octets at most.
func TestSenderFits(t *testing.T) {
	for _, from := range []string{"dmarc-tls-reporting@example.org", "reports@" + longDomain} {
		address := sender(t, from, "-")
		if local, _, _ := strings.Cut(address, "@"); len(local) > 64 || len(address) > 254 || len(local) < 64 && len(address) < 254 {
			t.Errorf("%d octets, %d in all", len(local), len(address))
		}
		if token, ok := ParseToken(from, "-", address); !ok || !token.Verify(secret, recipient) {
			t.Error("not read")
		}
	}
	// More than one character is fine, and in the name as well.
	for _, delimiter := range []string{"++", "-=", "--"} {
		if token, ok := ParseToken("dmarc--rua@example.org", delimiter, sender(t, "dmarc--rua@example.org", delimiter)); !ok || !token.Verify(secret, recipient) {
			t.Errorf("not read behind %s", delimiter)
		}
	}
}

// longDomain leaves room for reports@, a delimiter and a token.
var longDomain = strings.Repeat("a.", 90) + strings.Repeat("a", 254-len("reports+@")-44-180)

func TestSenderErrors(t *testing.T) {
	for _, test := range []struct{ name, from, delimiter, id string }{
		{"too long", "dmarc-tls-reporting@example.org", "++", reportID},
		{"too long in all", "reports@" + longDomain, "++", reportID},
		{"no address", "reports", "+", reportID},
		{"no local part", "@example.org", "+", reportID},
		{"no domain", "reports@", "+", reportID},
		{"quoted local part", `"re ports"@example.org`, "+", reportID},
		{"line end", "reports\n@example.org", "+", reportID},
		{"line end in the domain", "reports@example.org\n", "+", reportID},
		{"two dots", "re..ports@example.org", "+", reportID},
		{"no delimiter", "reports@example.org", "", reportID},
		{"a delimiter with a letter", "reports@example.org", "+x", reportID},
		{"a letter", "reports@example.org", "a", reportID},
		{"a dot", "reports@example.org", ".", reportID},
		{"a blank", "reports@example.org", " ", reportID},
		{"an at sign", "reports@example.org", "@", reportID},
		{"short ID", "reports@example.org", "+", reportID[2:]},
		{"long ID", "reports@example.org", "+", reportID + "00"},
		{"ID in upper case", "reports@example.org", "+", strings.ToUpper(reportID)},
		{"ID of other characters", "reports@example.org", "+", "x" + reportID[1:]},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, err := Sender(secret, test.from, test.delimiter, test.id, recipient); err == nil || got != "" {
				t.Errorf("got %q", got)
			}
		})
	}
	if _, ok := ParseToken("reports", "+", sender(t, "reports@example.org", "+")); ok {
		t.Error("read for no address")
	}
}

// A token is good for one report, one recipient and one secret.
func TestVerify(t *testing.T) {
	address := sender(t, "reports@example.org", "+")
	token, ok := ParseToken("reports@example.org", "+", address)
	if !ok || !token.Verify(secret, recipient) {
		t.Fatal("not read")
	}
	if token.Verify(secret, "victim@peer.example") || token.Verify(secret, "Dmarc@peer.example") || token.Verify(secret, "") {
		t.Error("good for another recipient")
	}
	if token.Verify([]byte("another"), recipient) || token.Verify(nil, recipient) {
		t.Error("good with another secret")
	}
	other := token
	other.Report = "1" + reportID[1:]
	if other.Verify(secret, recipient) {
		t.Error("good for another report")
	}
	for _, id := range []string{"", reportID[1:], reportID + "00", "x"} {
		other.Report = id
		if other.Verify(secret, recipient) {
			t.Errorf("good for report %q", id)
		}
	}
	if (Token{}).Verify(secret, recipient) {
		t.Error("an empty one is good")
	}
}

// Each other character at each place makes another token, or none: there is one form of
// each (RFC 4648 3.5), and no octet that is not looked at.
func TestForged(t *testing.T) {
	const prefix = len("reports+")
	address := sender(t, "reports@example.org", "+")
	for i := range TokenSize {
		for c := range 256 {
			forged := []byte(address)
			forged[prefix+i] = byte(c)
			if strings.EqualFold(string(forged), address) {
				continue
			}
			if token, ok := ParseToken("reports@example.org", "+", string(forged)); ok && token.Verify(secret, recipient) {
				t.Fatalf("octet %#x at %d is good", c, i)
			}
		}
	}
}

func TestParseToken(t *testing.T) {
	address := sender(t, "reports@example.org", "+")
	for _, bad := range []string{
		"", "@", "reports@example.org", "reports+@example.org",
		strings.Replace(address, "+", "-", 1),
		strings.Replace(address, "reports", "Report5", 1),
		strings.Replace(address, "example.org", "example.com", 1),
		strings.Replace(address, "@", ".", 1),
		strings.Replace(address, "+a", "+", 1),
		strings.Replace(address, "+a", "+1", 1),
		strings.Replace(address, "+a", "+=", 1),
		strings.Replace(address, "+a", "+\n", 1),
		strings.Replace(address, "reports", "reportſ", 1), // folds to "s", but is another letter
		" " + address, address + " ", "<" + address + ">", "x" + address,
	} {
		if token, ok := ParseToken("reports@example.org", "+", bad); ok {
			t.Errorf("%q: %+v", bad, token)
		}
	}
}

// FuzzParseToken checks that no address but the right one passes, and that a token is
// read from one form only.
func FuzzParseToken(f *testing.F) {
	good := sender(f, "reports@example.org", "+")
	f.Add(good, "reports@example.org", "+")
	f.Add(sender(f, "r@example.org", "-"), "r@example.org", "-")
	f.Fuzz(func(t *testing.T, address, from, delimiter string) {
		token, ok := ParseToken(from, delimiter, address)
		if !ok {
			return
		}
		id, err := hex.DecodeString(token.Report)
		if err != nil || len(id) != idSize {
			t.Fatalf("report %q", token.Report)
		}
		again := tokenEncoding.EncodeToString(append(id, token.mac[:]...))
		if !strings.EqualFold(from[:strings.Index(from, "@")]+delimiter+again+from[strings.Index(from, "@"):], address) {
			t.Errorf("%q has another form: %q", address, again)
		}
		if token.Verify(secret, recipient) {
			want, err := Sender(secret, from, delimiter, token.Report, recipient)
			if err != nil || !strings.EqualFold(want, address) {
				t.Errorf("%q passes, but would be %q, %v", address, want, err)
			}
		}
	})
}

func TestRead(t *testing.T) {
	long := strings.Repeat("x", MaxSize+100_000)
	rest := strings.NewReader(long)
	got, err := Read(rest)
	if err != nil || string(got) != long[:MaxSize] {
		t.Errorf("%d octets, %v", len(got), err)
	}
	if rest.Len() > 0 {
		t.Errorf("%d octets not read", rest.Len())
	}
	if got, err := Read(strings.NewReader("short")); err != nil || string(got) != "short" {
		t.Errorf("%q, %v", got, err)
	}
	fault := errors.New("fault")
	for _, r := range []io.Reader{
		iotest.ErrReader(fault),
		io.MultiReader(bytes.NewReader(make([]byte, MaxSize)), iotest.ErrReader(fault)),
	} {
		if got, err := Read(r); !errors.Is(err, fault) || got != nil {
			t.Errorf("%d octets, %v", len(got), err)
		}
	}
}
