package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"text/tabwriter"

	"ruapost/daemon"
)

func storeCommand(args []string) (action, error) {
	operands, err := parse("store", args, 1, 1, nil)
	if err != nil {
		return nil, err
	}
	act, ok := storeCommands[operands[0]]
	if !ok {
		return nil, cli.UnknownWord("store", operands[0], maps.Keys(storeCommands))
	}
	return needStore(act), nil
}

// storeCommands are the words behind "store".
var storeCommands = map[string]action{
	"stats":   storeStats,
	"check":   storeCheck,
	"compact": storeCompact,
	"export":  storeExport,
	"import":  storeImport,
}

// at says what a command is doing with the store, for the line on the terminal.
func (t *tools) at(doing string) (end func()) {
	if file, err := os.Stat(t.cfg.Store.Path); err == nil {
		doing += fmt.Sprintf(" (%d MB)", file.Size()/1_000_000)
	}
	return working(os.Stderr, doing)
}

func storeCompact(ctx context.Context, t *tools) error {
	defer t.at("compacting the store")()
	return t.store.Compact(ctx)
}

func storeExport(ctx context.Context, t *tools) error {
	if !daemon.IsTerminal(os.Stdout) { // there the lines themselves show how it goes
		defer t.at("exporting the store")()
	}
	return t.store.Export(ctx, os.Stdout)
}

func storeImport(ctx context.Context, t *tools) error {
	defer t.at("importing into the store")()
	return t.store.Import(ctx, os.Stdin)
}

func storeStats(ctx context.Context, t *tools) error {
	st, err := t.store.Stats(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, line := range []struct {
		n    any
		what string
	}{
		{st.Schema, "schema"},
		{st.FileBytes, "bytes in the file"},
		{st.FreeBytes, "bytes of it are free"},
		{st.Groups, "groups: policies of a day and domain, not yet in a report"},
		{st.Rows, "rows of these and of reports that are not composed"},
		{st.RowBytes, "bytes of rows"},
		{st.Reports, "reports, of which those done are kept for some days"},
		{st.STSPolicies, "MTA-STS policies"},
		{st.STSBytes, "bytes of these"},
		{st.Positions, "logs whose position is kept"},
		{st.Suppressions, "suppressions"},
		{st.Counts, "counters of what the reporter did"},
		{st.Tallies, "daily totals"},
	} {
		fmt.Fprintf(w, "%d\t %s\n", line.n, line.what)
	}
	return w.Flush()
}

func storeCheck(ctx context.Context, t *tools) error {
	end := t.at("checking the store")
	faults, err := t.store.Check(ctx)
	end()
	if err != nil {
		return err
	}
	for _, f := range faults {
		fmt.Println(f)
	}
	if len(faults) > 0 {
		fmt.Printf("%d faults in %s\n", len(faults), t.cfg.Store.Path)
		return daemon.ErrFound
	}
	fmt.Println("No faults found.")
	return nil
}
