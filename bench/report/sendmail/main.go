// Command sendmail stands in for sendmail(1) in bench/report: it takes a mail from its
// standard input and puts it, behind a line with the recipient, into a file of its own
// in the folder that is its first argument. It does no more, and little is linked into
// it, so that it costs as little as a program can.
package main

import (
	"errors"
	"io"
	"os"
)

func main() {
	if err := take(os.Args[1], os.Args[len(os.Args)-1]); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(75) // EX_TEMPFAIL
	}
}

func take(dir, recipient string) error {
	f, err := os.CreateTemp(dir, "")
	if err != nil {
		return err
	}
	_, err1 := f.WriteString(recipient + "\n")
	_, err2 := io.Copy(f, os.Stdin)
	return errors.Join(err1, err2, f.Close())
}
