package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
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
		subject, name, content, err := readMail(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		decoded := filepath.Join(d.out, "decoded", strings.TrimSuffix(name, ".gz"))
		if err := os.WriteFile(decoded, content, 0o644); err != nil {
			return err
		}
		d.printf("\n   %s\n   %s\n   %s\n", subject, path, decoded)
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

// readMail returns a report mail's subject, the name of its attachment and the
// report.
func readMail(path string) (subject, name string, content []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", nil, err
	}
	defer f.Close()
	m, err := mail.ReadMessage(f)
	if err != nil {
		return "", "", nil, err
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		return "", "", nil, err
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		part, err := parts.NextPart()
		if err != nil {
			return "", "", nil, err
		}
		if name = part.FileName(); name == "" {
			continue
		}
		zr, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, part))
		if err != nil {
			return "", "", nil, err
		}
		if content, err = io.ReadAll(zr); err != nil {
			return "", "", nil, err
		}
		if strings.HasSuffix(name, ".json.gz") {
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, content, "", "  "); err != nil {
				return "", "", nil, err
			}
			content = pretty.Bytes()
		}
		return m.Header.Get("Subject"), name, content, nil
	}
}
