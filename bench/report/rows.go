package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ruapost"
	"ruapost/bboltstore"
)

const (
	maxReports = bboltstore.MaxWindowGroups
	maxRows    = 10_000_000
	callers    = 1000 // record rows at a time
)

func domain(n int) string { return fmt.Sprintf("d%d.example", n) }

// count is how many messages the n-th row of a report stands for.
func count(n int) int { return 1 + n%3 }

// messages is the number of messages of a report with so many rows.
func messages(rows int) (sum int64) {
	for n := range rows {
		sum += int64(count(n))
	}
	return sum
}

// evaluation returns a message of a domain that belongs to its n-th row.
func evaluation(at time.Time, domain string, n int) *ruapost.Evaluation {
	return &ruapost.Evaluation{
		Time: at,
		Policy: ruapost.DMARCPolicy{
			Domain: domain, P: ruapost.DispositionReject, SP: ruapost.DispositionQuarantine,
			ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed, FO: "0", Percent: 100, Discovery: "treewalk",
		},
		OrganizationalDomain: domain,
		Result: ruapost.DMARCResult{
			SourceIP:     address(n),
			Disposition:  ruapost.DispositionPass,
			AlignedDKIM:  true,
			HeaderFrom:   domain,
			EnvelopeFrom: "bounce." + domain,
			DKIM: []ruapost.DKIMResult{
				{Domain: domain, Selector: "s2026", Result: ruapost.AuthPass},
				{Domain: "sender.example.net", Selector: "key1", Result: ruapost.AuthPass},
			},
			SPF: ruapost.SPFResult{Domain: "bounce." + domain, Result: ruapost.AuthSoftfail},
		},
	}
}

// address returns the n-th of addresses that look as if they had nothing in common.
func address(n int) netip.Addr {
	x := uint32(n) * 2654435761 // odd, and so each n has another
	return netip.AddrFrom4([4]byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)})
}

// fill puts the rows of the reports into the store at path, which is not there yet, and
// makes sure that they are all there: bounds of the store may be in the way.
func (l load) fill(ctx context.Context, path string) (err error) {
	s, err := bboltstore.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	// Its day ended half a day ago at least, whatever time it is.
	at := time.Now().Add(-36 * time.Hour)
	if l.rows <= bboltstore.MaxGroupRows {
		err = l.record(ctx, s, at)
	} else {
		err = l.importRows(ctx, s, path+".template", at)
	}
	if err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	groups, err := s.Groups(ctx, time.Now())
	if err != nil {
		return err
	}
	var rows, total int64
	for _, g := range groups {
		rows, total = rows+g.Rows, total+g.Total
	}
	want := int64(l.reports) * messages(l.rows)
	if len(groups) != l.reports || rows != int64(l.reports*l.rows) || total != want {
		return fmt.Errorf("fill the store: %d groups, %d rows, %d of %d messages are there", len(groups), rows, total, want)
	}
	return nil
}

// record records the messages as the milter does.
func (l load) record(ctx context.Context, s *bboltstore.Store, at time.Time) error {
	var next atomic.Int64
	var all errgroup.Group
	for range callers {
		all.Go(func() error {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= l.reports*l.rows {
					return nil
				}
				n := i / l.reports
				e := evaluation(at, domain(i%l.reports), n)
				for range count(n) {
					if err := s.RecordEvaluation(ctx, e); err != nil {
						return err
					}
				}
			}
			return ctx.Err()
		})
	}
	return all.Wait()
}

// importRows imports what the store would have had if its bounds were larger: an export
// of one row, of a store at the path template, with others like it.
func (l load) importRows(ctx context.Context, s *bboltstore.Store, template string, at time.Time) error {
	lines, err := exported(ctx, template, at)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.writeImport(w, lines, at)) }()
	defer r.Close()
	return s.Import(ctx, r)
}

// exported returns the lines that a store with one row of a report exports.
func exported(ctx context.Context, path string, at time.Time) ([][]byte, error) {
	s, err := bboltstore.Open(path)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var export bytes.Buffer
	if err := errors.Join(s.RecordEvaluation(ctx, evaluation(at, domain(0), 0)), s.Export(ctx, &export)); err != nil {
		return nil, err
	}
	return bytes.Split(bytes.TrimSpace(export.Bytes()), []byte("\n")), nil
}

// writeImport writes the lines with as many rows in the place of their one.
func (l load) writeImport(out io.Writer, lines [][]byte, at time.Time) error {
	w := bufio.NewWriter(out)
	for _, text := range lines {
		var line map[string]map[string]any
		switch err := json.Unmarshal(text, &line); {
		case err != nil || line["group"] == nil && line["row"] == nil:
			fmt.Fprintf(w, "%s\n", text) // about the store, or its known domains
		case line["group"] != nil:
			g := line["group"]
			g["rows"], g["bytes"] = l.rows, l.bytes(g["bytes"].(float64))
			for _, sum := range []string{"total", "listed", "required", "passed"} {
				g[sum] = messages(l.rows)
			}
			if err := writeLine(w, line); err != nil {
				return err
			}
		default:
			row := line["row"]
			for n := range l.rows {
				row["count"], row["data"] = count(n), evaluation(at, domain(0), n).Result
				if err := writeLine(w, line); err != nil {
					return err
				}
			}
		}
	}
	return w.Flush()
}

// bytes returns the size of the rows if that of the first one is as given.
func (l load) bytes(first float64) (sum int) {
	for n := range l.rows {
		sum += int(first) + len(address(n).String()) - len(address(0).String())
	}
	return sum
}

func writeLine(w io.Writer, line any) error {
	return json.NewEncoder(w).Encode(line)
}
