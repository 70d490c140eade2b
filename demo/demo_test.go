package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ruapost/dmarc"
	"ruapost/tlsrpt"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "sendmail" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestDemo runs the demonstration and checks what it says there is to see.
func TestDemo(t *testing.T) {
	bin, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	for _, p := range []string{"milter", "tlspolicy", "reporter"} {
		b, err := exec.Command("go", "build", "-o", filepath.Join(bin, "ruapost-"+p), "../cmd/"+p).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
	}
	// Just before midnight the day's mail would be two days' reports.
	if now := time.Now().UTC(); now.Hour() == 23 && now.Minute() >= 59 {
		time.Sleep(time.Until(now.Truncate(time.Minute).Add(time.Minute)))
	}
	// Whatever else is in the folder is none of the demonstration's business.
	notOurs, earlier := filepath.Join(out, "notes.txt"), filepath.Join(out, "mails", "earlier.eml")
	for _, f := range []string{notOurs, earlier} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o755), os.WriteFile(f, []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	var said bytes.Buffer
	if err := run(bin, out, &said); err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	if _, err := os.Stat(notOurs); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(earlier); err == nil {
		t.Error("the mails of an earlier run are still there")
	}
	counts := map[string]int64{}
	var types []string
	files, err := filepath.Glob(filepath.Join(out, "decoded", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(f, ".json") {
			rep, err := tlsrpt.ParseReport(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range rep.Policies {
				types = append(types, string(p.Policy.Type))
				counts[string(p.Policy.Type)] = p.Summary.Successful*1000 + p.Summary.Failed
			}
			continue
		}
		rep, err := dmarc.ParseReport(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rep.Records {
			counts[rep.Policy.Domain] += r.Count
		}
	}
	slices.Sort(types)
	if !slices.Equal(types, []string{"no-policy-found", "sts", "tlsa"}) {
		t.Errorf("policy types %v", types)
	}
	for what, want := range map[string]int64{
		"shop.example": 175, "club.example": 37, "xn--bcherbank-q9a.example": 20,
		"sts": 60_004, "tlsa": 80_002, "no-policy-found": 20_000,
	} {
		if counts[what] != want {
			t.Errorf("%s: %d, want %d", what, counts[what], want)
		}
	}
	if !strings.Contains(said.String(), "secure match=.partner.example servername=hostname policy_type=sts") {
		t.Errorf("policy answers:\n%s", &said)
	}
}
