package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// load is what to do to a file. The fields are the flags of these names.
type load struct {
	writers, rate, batch, rows int
	time                       time.Duration
	single, spread             bool
	reporter, compactor, slow  bool
}

// grace is the time that processes may take longer than their work.
const grace = time.Minute

// outcome is what came of a run.
type outcome struct {
	writers []result // the single process is one, too
	others  []result // reporter and compactor
	size    int64    // of the file, in bytes
	sync    time.Duration
}

func (l *load) jobs(path string) []job {
	if l.single {
		return []job{{Role: roleSingle, Path: path, Writers: l.writers, Batch: l.batch, Time: l.time}}
	}
	var jobs []job
	for n := range l.writers {
		j := job{Role: roleWriter, Number: n, Path: path, Rate: l.rate, Batch: l.batch, Time: l.time}
		if l.spread {
			j.Spread = l.rows
		}
		jobs = append(jobs, j)
	}
	if l.reporter {
		jobs = append(jobs, job{Role: roleReporter, Path: path, Time: l.time})
	}
	if l.compactor {
		jobs = append(jobs, job{Role: roleCompactor, Path: path, Time: l.time})
	}
	return jobs
}

// run lets the processes loose on the file at path, all at the same time.
func (l *load) run(ctx context.Context, path string) (*outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, l.time+grace)
	defer cancel()
	o := &outcome{}
	var err error
	if o.sync, err = syncPair(filepath.Dir(path)); err != nil {
		return nil, err
	}
	var processes []*process
	defer func() {
		cancel() // ends those that are left after an error
		for _, p := range processes {
			p.cmd.Wait()
		}
	}()
	for _, j := range l.jobs(path) {
		p, err := start(ctx, j, l.slow && (j.Role == roleWriter || j.Role == roleSingle))
		if err != nil {
			return nil, err
		}
		processes = append(processes, p)
	}
	for _, p := range processes {
		if _, err := p.out.ReadByte(); err != nil {
			return nil, fmt.Errorf("%s %d did not begin: %w", p.job.Role, p.job.Number, err)
		}
	}
	for _, p := range processes {
		if _, err := p.in.Write([]byte{0}); err != nil {
			return nil, err
		}
	}
	for _, p := range processes {
		var r result
		if err := gob.NewDecoder(p.out).Decode(&r); err != nil {
			return nil, fmt.Errorf("%s %d has no result: %w", p.job.Role, p.job.Number, err)
		}
		slices.Sort(r.Latencies)
		if r.Role == roleWriter || r.Role == roleSingle {
			o.writers = append(o.writers, r)
		} else {
			o.others = append(o.others, r)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	o.size = info.Size()
	return o, nil
}

// process is a copy of this program that works on a job.
type process struct {
	job job
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(ctx context.Context, j job, slow bool) (*process, error) {
	cmd, err := command(ctx, j, slow)
	if err != nil {
		return nil, err
	}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return nil, err
	}
	return &process{j, cmd, in, bufio.NewReader(out)}, nil
}

// command returns the copy of this program that works on j. Killed or not, it ends
// with this process, since its standard input does.
func command(ctx context.Context, j job, slow bool) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	args := []string{self}
	if slow {
		args = []string{
			"strace", "-f", "--seccomp-bpf", "-qq", "-o", os.DevNull,
			"-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=10000", self,
		}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(encoded))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// syncPair returns the median time of what a small commit costs the disk without a
// database: write four pages, fdatasync, write one page, fdatasync.
func syncPair(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "sync-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	if err := errors.Join(f.Truncate(int64(64*len(page))), f.Sync()); err != nil {
		return 0, err
	}
	var times []time.Duration
	for n := range 200 {
		began := time.Now()
		for i := range 4 {
			if _, err := f.WriteAt(page, int64((1+n+i)%64*len(page))); err != nil {
				return 0, err
			}
		}
		err1 := unix.Fdatasync(int(f.Fd()))
		_, err2 := f.WriteAt(page, 0)
		err3 := unix.Fdatasync(int(f.Fd()))
		if err := errors.Join(err1, err2, err3); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began))
	}
	return median(times), nil
}

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// all is the sum of the writers.
func (o *outcome) all() result {
	var all result
	for _, w := range o.writers {
		all.Elapsed = max(all.Elapsed, w.Elapsed)
		all.Records += w.Records
		all.Commits += w.Commits
		all.Opened += w.Opened
		all.OpenTime += w.OpenTime
		all.Latencies = append(all.Latencies, w.Latencies...)
	}
	slices.Sort(all.Latencies)
	return all
}

// share is the part of the records that is the first writer's.
func (o *outcome) share() float64 {
	return float64(o.writers[0].Records) / float64(max(1, o.all().Records))
}

// perSecond is the number of records a second.
func (r *result) perSecond() float64 { return float64(r.Records) / r.Elapsed.Seconds() }

// batch is the mean number of records in a commit.
func (r *result) batch() float64 { return float64(r.Records) / float64(max(1, r.Commits)) }

// percentile returns the latency that p per cent of the calls did not exceed.
func (r *result) percentile(p int) time.Duration {
	if len(r.Latencies) == 0 {
		return 0
	}
	return r.Latencies[(len(r.Latencies)-1)*p/100]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond)) }

// print writes the outcome as a table for people.
func (o *outcome) print(out io.Writer) error {
	all := o.all()
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "process\trecords/s\tshare\tcalls\tcommits/s\trecords/commit\topen ms\tp50 ms\tp99 ms\tmax ms\t")
	line := func(name string, r *result, share float64) {
		fmt.Fprintf(t, "%s\t%.0f\t%.1f%%\t%d\t%.0f\t%.1f\t%s\t%s\t%s\t%s\t\n", name,
			r.perSecond(), 100*share, len(r.Latencies), float64(r.Commits)/r.Elapsed.Seconds(), r.batch(),
			ms(r.OpenTime/time.Duration(max(1, r.Opened))), ms(r.percentile(50)), ms(r.percentile(99)), ms(r.percentile(100)))
	}
	for i := range o.writers {
		w := &o.writers[i]
		line(fmt.Sprintf("%s %d", w.Role, w.Number), w, float64(w.Records)/float64(max(1, all.Records)))
	}
	line("all", &all, 1)
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "open is the mean time to get the file, p50 to max are from a record call to its return (single: of a commit)")
	for _, r := range o.others {
		what := "records reported"
		if r.Role == roleCompactor {
			what = "compactions"
		}
		fmt.Fprintf(out, "%s: %.0f %s/s, %d calls, p50 %s ms, p99 %s ms, max %s ms\n", r.Role, r.perSecond(), what,
			len(r.Latencies), ms(r.percentile(50)), ms(r.percentile(99)), ms(r.percentile(100)))
	}
	_, err := fmt.Fprintf(out, "file: %.1f MB; a lone fdatasync pair: %s ms\n", float64(o.size)/1e6, ms(o.sync))
	return err
}
