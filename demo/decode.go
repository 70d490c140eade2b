package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ruapost/internal/lab"
)

// decode unpacks the report of every mail and tells what there is to look at.
func (d *demo) decode() error {
	mails, err := filepath.Glob(filepath.Join(d.out, "mails", "*.eml"))
	if err != nil {
		return err
	}
	if len(mails) == 0 {
		return fmt.Errorf("no report was sent, see %s", d.log.Name())
	}
	d.printf("5. The mails, as sendmail got them, and their reports, decoded:\n")
	for _, path := range mails {
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m, err := lab.ReadReportMail(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		content := m.Content
		if strings.HasSuffix(m.Filename, ".json.gz") {
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, content, "", "  "); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			content = pretty.Bytes()
		}
		decoded := filepath.Join(d.out, "decoded", strings.TrimSuffix(m.Filename, ".gz"))
		if err := os.WriteFile(decoded, content, 0o644); err != nil {
			return err
		}
		d.printf("\n   %s\n   %s\n   %s\n", m.Header.Get("Subject"), path, decoded)
	}
	d.printf(`
What to look at: the forgeries in the shop's report (disposition none, because this
program only watches; dkim and spf fail), the mailing list's mails in it (spf fails,
dkim passes), the club's report that goes to another domain, which has agreed to
that; and the three policy types in partner.example's TLS report. The programs' own
words are in %s.
`, d.log.Name())
	return nil
}
