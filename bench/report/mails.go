package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mails is what was in the mails that sendmail got.
type mails struct {
	number   int
	largest  int64 // octets of a mail
	rows     int
	messages map[string]int64 // that the rows stand for, by recipient
}

// readMails reads the mails in a folder. An error says which is none of the reports that
// are to come, or came twice.
func readMails(dir string) (m mails, err error) {
	m.messages = map[string]int64{}
	files, err := os.ReadDir(dir)
	if err != nil {
		return m, err
	}
	seen := map[string]bool{}
	for _, f := range files {
		if err := m.read(filepath.Join(dir, f.Name()), seen); err != nil {
			return m, fmt.Errorf("mail %s: %w", f.Name(), err)
		}
	}
	return m, nil
}

// read adds a mail. Its report must not have been seen.
func (m *mails) read(path string, seen map[string]bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r := bufio.NewReaderSize(f, 1<<16)
	to, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	content, err := attachment(r)
	if err != nil {
		return err
	}
	rep, err := readReport(content)
	if err != nil {
		return err
	}
	to = strings.TrimSpace(to)
	switch {
	case to != "dmarc@"+rep.domain:
		return fmt.Errorf("a report about %s went to %s", rep.domain, to)
	case rep.id == "" || seen[rep.id]:
		return fmt.Errorf("report %q came again, or has no ID", rep.id)
	}
	seen[rep.id] = true
	m.number++
	m.largest = max(m.largest, info.Size()-int64(len(to)+1))
	m.rows += rep.rows
	m.messages[to] += rep.messages
	return nil
}

// attachment returns the report in a mail, uncompressed. A report of a million rows has
// no place in memory: it is read as it comes.
func attachment(r io.Reader) (io.Reader, error) {
	msg, err := mail.ReadMessage(r)
	if err != nil {
		return nil, err
	}
	if msg.Header.Get("DKIM-Signature") == "" {
		return nil, errors.New("not signed")
	}
	_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		return nil, err
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	if _, err := parts.NextPart(); err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	part, err := parts.NextRawPart()
	if err != nil {
		return nil, fmt.Errorf("attachment: %w", err)
	}
	return gzip.NewReader(base64.NewDecoder(base64.StdEncoding, part))
}

// report is what counts of a DMARC report.
type report struct {
	id, domain string
	rows       int
	messages   int64
}

// readReport reads a report as ruapost-reporter writes it, an element a line: a parser of
// XML takes longer for a million rows than the reporter does.
func readReport(r io.Reader) (rep report, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, rest, _ := bytes.Cut(bytes.TrimSpace(lines.Bytes()), []byte(">"))
		text, _, _ := bytes.Cut(rest, []byte("<"))
		switch string(name) {
		case "<report_id":
			rep.id = string(text)
		case "<domain":
			if rep.domain == "" { // the first is that of the policy
				rep.domain = string(text)
			}
		case "<count":
			n, err := strconv.ParseInt(string(text), 10, 64)
			if err != nil {
				return rep, err
			}
			rep.rows++
			rep.messages += n
		}
	}
	return rep, lines.Err()
}
