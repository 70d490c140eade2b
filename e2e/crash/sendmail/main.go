// Command sendmail stands in for sendmail(1) in the tests of e2e/crash. It puts a mail
// into a file of the folder mails in the folder that is its first argument, whole or not
// at all. If there is a file plan in that folder, which says STATE N, it kills the
// reporter that has started it as soon as the N-th mail, or a later one, is in that state:
//
//	started   nothing of the mail is read
//	half      half of it is read
//	read      all of it is read, and the mail not taken yet
//	taken     the mail is taken, and sendmail has not ended
//	lost      as taken, and the processes between the reporter and sendmail are killed,
//	          too: nobody is left who knows that the mail was taken
//
// The mail is taken all the same. The plan is carried out once, by whoever makes the file
// struck; a mail of state lost is noted in the file lost.
//
// It is no part of the test program because the race detector makes each process last a
// second longer.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	s := sendmail{dir: os.Args[1], recipient: os.Args[len(os.Args)-1]}
	if err := s.take(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(75) // EX_TEMPFAIL
	}
}

type sendmail struct {
	dir, recipient string
	state          string // in which to kill, empty for none
	number         int    // of the first mail to do it with
	own            int    // number of this mail
}

func (s *sendmail) take() error {
	if err := s.read(); err != nil {
		return err
	}
	info, err := os.Stdin.Stat()
	if err != nil {
		return err
	}
	s.reached("started")
	half := make([]byte, info.Size()/2)
	if _, err := io.ReadFull(os.Stdin, half); err != nil {
		return err
	}
	s.reached("half")
	rest, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	s.reached("read")
	name := filepath.Join(s.dir, "mails", fmt.Sprintf("%d-%d", s.own, os.Getpid()))
	if err := os.WriteFile(name, fmt.Appendf(nil, "%s\n%s%s", s.recipient, half, rest), 0o600); err != nil {
		return err
	}
	// Not renameat(2): that would be a call by which the test counts the reporter's.
	if err := unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, name+".mail", unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	s.reached("taken")
	s.reached("lost")
	return nil
}

// read reads the plan and counts this mail.
func (s *sendmail) read() error {
	if plan, err := os.ReadFile(filepath.Join(s.dir, "plan")); err == nil {
		if _, err := fmt.Sscan(string(plan), &s.state, &s.number); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "count"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	fmt.Fscan(f, &s.own) // nothing in an empty file
	s.own++
	_, err = f.WriteAt(fmt.Appendf(nil, "%d", s.own), 0)
	return err
}

// reached kills the reporter if this is the state to do so in. One that is gone already
// is left alone.
func (s *sendmail) reached(state string) {
	if state != s.state || s.own < s.number {
		return
	}
	reporter, between := ancestors()
	if reporter == 0 {
		return
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "struck"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return
	}
	f.Close()
	if state == "lost" {
		if err := os.WriteFile(filepath.Join(s.dir, "lost"), []byte(s.recipient), 0o600); err != nil {
			return
		}
		// The reporter must not see their end.
		unix.Kill(reporter, unix.SIGSTOP)
		for _, pid := range between {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	unix.Kill(reporter, unix.SIGKILL)
}

// ancestors returns the reporter that has started this process, 0 if it is gone, and the
// processes between.
func ancestors() (reporter int, between []int) {
	for pid := os.Getppid(); pid > 1; {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			return 0, nil
		}
		if filepath.Base(exe) == "reporter" {
			return pid, between
		}
		between = append(between, pid)
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, nil
		}
		// Behind the name, in parentheses: state and parent (proc_pid_stat(5)).
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		fmt.Sscan(fields[1], &pid)
	}
	return 0, nil
}
