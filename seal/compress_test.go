package seal

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"
)

// flated is what an archive or a picture looks like, up to 1 MiB.
func flated(n int) []byte { return allFlated()[1000 : n+1000] }

var allFlated = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.DefaultCompression)
	for err == nil && b.Len() < 1<<20+1000 {
		_, err = w.Write(allText())
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
})

func samples(t testing.TB, n int) map[string][]byte {
	noise, words := random(1, n), text(n)
	exe, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	exe = exe[len(exe)/4:][:n]
	each := make([]byte, n) // every byte as often as any other: only matches tell
	for i := range each {
		each[i] = byte(i * 77)
	}
	numbers := make([]byte, n) // of a slow sensor: the high bytes hardly change
	for i := 0; i+4 <= n; i += 4 {
		binary.LittleEndian.PutUint32(numbers[i:], 1<<20+uint32(noise[i])+uint32(noise[i+1])<<4)
	}
	return map[string][]byte{
		"noise": noise, "flate": flated(n), "text": words, "zeros": make([]byte, n), "program": exe, "numbers": numbers,
		"base64":         []byte(base64.StdEncoding.EncodeToString(noise))[:n],
		"noise and text": append(bytes.Clone(noise[:n/2]), words[:n-n/2]...),
		"text at end":    append(bytes.Clone(noise[:n*7/8]), words[:n-n*7/8]...),
		"every byte":     each,
		"short period":   bytes.Repeat(noise[:256], n/256+1)[:n],
	}
}

// Where compression saves nothing the probe says so, or a hundred times its own
// cost is spent on every film; where it saves much, the probe must not miss it.
func TestProbePredicts(t *testing.T) {
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
		for name, plain := range samples(t, n) {
			var c Compressor
			got := Probe(plain)
			body, kept := c.Compress(nil, plain)
			switch name {
			case "noise", "flate":
				if got || kept {
					t.Errorf("%s of %d bytes: the probe promises a gain", name, n)
				}
			case "text at end": // the codec may find less in so little than the probe does
				if !got {
					t.Errorf("%s of %d bytes: the probe misses it", name, n)
				}
			default:
				if !got || !kept {
					t.Errorf("%s of %d bytes: probe %v, kept %v", name, n, got, kept)
				} else if len(body) > n-n/32 {
					t.Errorf("%s of %d bytes: %d were kept", name, n, len(body))
				}
			}
		}
	}
}

// The threshold is 3 %, and no accident of small samples passes it often.
func TestProbeIsNotFooledByNoise(t *testing.T) {
	src := source(5)
	for _, n := range []int{1 << 10, 8 << 10, 300 << 10} {
		fooled := 0
		for range 2000 {
			b := make([]byte, min(n, 16<<10))
			src.Read(b)
			if Probe(b) {
				fooled++
			}
		}
		if fooled > 20 {
			t.Errorf("noise of %d bytes: %d of 2000 times a gain is promised", n, fooled)
		}
	}
	for n := range 64 {
		if Probe(make([]byte, n)) {
			t.Errorf("%d zeros are promised a gain", n)
		}
	}
	for n := 64; n < 20000; n += 7 {
		if !Probe(make([]byte, n)) {
			t.Errorf("%d zeros are promised none", n)
		}
	}
}

// What is kept saves a 32nd at least: right at the border.
func TestLeastSaving(t *testing.T) {
	noise := random(1, 100<<10)
	kept, refused := 0, 0
	for zeros := 0; zeros <= 8<<10; zeros += 256 {
		plain := bytes.Clone(noise)
		for i := range zeros { // spread, so that the probe meets them
			plain[i*len(plain)/(8<<10)] = 0
		}
		copy(plain, make([]byte, zeros))
		body, ok := new(Compressor).Compress([]byte("dst"), plain)
		switch {
		case ok && len(body)-3 > len(plain)-len(plain)/32:
			t.Errorf("%d of %d bytes were kept", len(body)-3, len(plain))
		case !ok && string(body) != "dst":
			t.Errorf("refused, and dst has %d bytes", len(body))
		case ok:
			kept++
		default:
			refused++
		}
	}
	if kept == 0 || refused == 0 {
		t.Errorf("kept %d, refused %d", kept, refused)
	}
}

func BenchmarkProbe(b *testing.B) {
	for _, n := range []int{64 << 10, 1 << 20} {
		for _, name := range []string{"noise", "text"} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, n>>10), func(b *testing.B) {
				plain := samples(b, n)[name]
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					Probe(plain)
				}
			})
		}
	}
}

func BenchmarkCompress(b *testing.B) {
	all := samples(b, 1<<20)
	for _, name := range []string{"noise", "text", "program"} {
		b.Run(name+"/1024KiB", func(b *testing.B) {
			var c Compressor
			dst := make([]byte, 0, 1<<20+1<<10)
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				c.Compress(dst, all[name])
			}
		})
	}
}

// What was in dst before does not count, and what the probe turns down is not
// tried: noise that repeats far apart would compress, and costs nothing here.
func TestCompressAsksTheProbe(t *testing.T) {
	far := bytes.Repeat(random(1, 64<<10), 4)
	if Probe(far) {
		t.Fatal("the probe sees 64 KiB far")
	}
	if body, ok := new(Compressor).Compress(nil, far); ok {
		t.Errorf("%d bytes were compressed to %d without asking the probe", len(far), len(body))
	}
	before := make([]byte, 1<<20)
	plain := text(10 << 10)
	if out, ok := new(Compressor).Compress(before, plain); !ok || len(out) <= len(before) {
		t.Errorf("behind %d bytes: %v", len(before), ok)
	}
}
