package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// selfCPU is the user and system time that this process has taken so far.
func selfCPU() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic("bench: getrusage: " + err.Error()) // only for a wrong argument
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// tick is the unit of times in /proc: USER_HZ is 100 on every architecture that
// Linux runs Go on.
const tick = 10 * time.Millisecond

// procCPU is the user and system time that another process has taken so far, in
// ticks.
func procCPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(b)
}

// parseStat reads fields 14 and 15 of /proc/PID/stat (proc_pid_stat(5)). The
// second field is the program's name in brackets, and may hold anything.
func parseStat(b []byte) (time.Duration, error) {
	at := bytes.LastIndexByte(b, ')')
	f := bytes.Fields(b[at+1:])
	if at < 0 || len(f) < 13 {
		return 0, errors.New("bench: not the form of /proc/PID/stat")
	}
	user, err1 := strconv.ParseUint(string(f[11]), 10, 63)
	system, err2 := strconv.ParseUint(string(f[12]), 10, 63)
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// machineTime is what all CPUs have done, and what this process and those it
// waited for have.
type machineTime struct{ busy, total, own time.Duration }

func readMachine() (machineTime, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineTime{}, err
	}
	m, err := parseMachine(b)
	var children unix.Rusage
	if uerr := unix.Getrusage(unix.RUSAGE_CHILDREN, &children); uerr != nil {
		err = errors.Join(err, uerr)
	}
	m.own = selfCPU() + time.Duration(children.Utime.Nano()+children.Stime.Nano())
	return m, err
}

// parseMachine reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal; what guests take is in user already.
func parseMachine(b []byte) (m machineTime, err error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) < 9 || string(f[0]) != "cpu" {
		return m, errors.New("bench: not the form of /proc/stat")
	}
	for i, s := range f[1:9] {
		n, err := strconv.ParseUint(string(s), 10, 63)
		if err != nil {
			return m, err
		}
		m.total += time.Duration(n) * tick
		if i != 3 && i != 4 { // idle, iowait
			m.busy += time.Duration(n) * tick
		}
	}
	return m, nil
}

// others is the part of the CPUs that neither this process nor its children had,
// nor nobody: other processes, the kernel's threads, and other machines on the
// same host.
func (m machineTime) others(now machineTime) float64 {
	total := now.total - m.total
	if total <= 0 {
		return 0
	}
	return max(0, float64((now.busy-m.busy)-(now.own-m.own))/float64(total))
}

// Machine says where a run took place.
type Machine struct {
	CPU        string `json:"cpu"`
	CPUs       int    `json:"cpus"`
	Memory     int64  `json:"memory_bytes"`
	Kernel     string `json:"kernel"`
	Filesystem string `json:"filesystem"`
	Go         string `json:"go"`
	Commit     string `json:"commit"` // empty when it is not known
}

func describeMachine(dir string) Machine {
	m := Machine{CPU: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version(), Filesystem: filesystem(dir)}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.Memory = int64(si.Totalram) * int64(si.Unit)
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	return m
}

// filesystem names the type of the filesystem that dir lies on: that of the
// longest mount point above it.
func filesystem(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "unknown"
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "unknown"
	}
	best, kind := "", "unknown"
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		at := f[1]
		if (at == "/" || abs == at || strings.HasPrefix(abs, at+"/")) && len(at) >= len(best) {
			best, kind = at, f[2]
		}
	}
	return kind
}

// stopped waits for a process that was asked to stop, and kills it when it takes
// longer than grace.
func stopped(cmd *exec.Cmd, grace time.Duration) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	t := time.AfterFunc(grace, func() { _ = cmd.Process.Kill() })
	defer t.Stop()
	return cmd.Wait()
}
