package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

func TestParseConfig(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       configFile
		err        string // part of it
	}{
		{"empty", "", configFile{}, ""},
		{"comments alone", "# nothing\n", configFile{}, ""},
		{"an empty section", "[serve]\n", configFile{"serve": {}}, ""},
		{"every kind", "[serve]\ndata = '/d'\nlocal-nodes = 9\nbehind-proxy = true\nhost = ['a', 'b,c']\ndrain = '3s'\n[client]\nserver = 'http://h'\n",
			configFile{"serve": {"data": "/d", "local-nodes": int64(9), "behind-proxy": true, "host": []string{"a", "b,c"}, "drain": "3s"}, "client": {"server": "http://h"}}, ""},
		{"unknown key", "[serve]\nlisten-adr = 'x'\n", nil, `unknown key "listen-adr" in [serve]; the nearest there is: listen`},
		{"unknown key, a letter off", "[client]\nca_cert = 'x'\n", nil, "the nearest there is: ca-cert"},
		{"unknown section", "[sever]\n", nil, "the nearest there is: [serve]"},
		{"key of another section", "[client]\nlisten = 'x'\n", nil, "belongs under [serve]"},
		{"key above any section", "listen = 'x'\n", nil, `"listen" belongs under [serve]`},
		{"no act of one start", "[serve]\nnew = true\n", nil, "on the command line only"},
		{"no code", "[serve]\nrecovery-code-file = 'x'\n", nil, "on the command line only"},
		{"section as value", "serve = 'x'\n", nil, "is a section"},
		{"section twice", "[serve]\n[serve]\n", nil, "line 2"},
		{"key twice", "[serve]\ndata = 'a'\ndata = 'b'\n", nil, "line 3"},
		{"text for a number", "[serve]\nlocal-nodes = '6'\n", nil, "no whole number"},
		{"number for text", "[serve]\nmemory = 512\n", nil, "no text in quotes"},
		{"text for a list", "[serve]\nhost = 'a'\n", nil, "no list of texts"},
		{"numbers in a list", "[serve]\nhost = [1]\n", nil, "no list of texts"},
		{"text for a bool", "[serve]\nlog-json = 'yes'\n", nil, "no true or false"},
		{"no duration", "[serve]\ndrain = '7'\n", nil, "the value is not possible"},
		{"no TOML", "[serve\n", nil, "line 1"},
		{"not UTF-8", "[serve]\ndata = '\xff'\n", nil, "not UTF-8"},
		{"too long", strings.Repeat("#", maxConfig+1), nil, "more than 65536 bytes"},
	} {
		got, err := parseConfig([]byte(c.text))
		if c.err == "" && (err != nil || !reflect.DeepEqual(got, c.want)) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %q reads %v, %v; want %v, an error with %q", c.name, c.text, got, err, c.want, c.err)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"listen", "listen", 0}, {"lisen", "listen", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 2}} {
		if got := distance(c.a, c.b); got != c.want || distance(c.b, c.a) != got {
			t.Errorf("distance(%q, %q) = %d, and %d the other way; want %d", c.a, c.b, got, distance(c.b, c.a), c.want)
		}
	}
}

// TestEverySettingIsOneVariable: no two settings share a name, and none holds a
// secret: those come from files.
func TestEverySettingIsOneVariable(t *testing.T) {
	seen := map[string]bool{"CAIRN_TOKEN": true, "CAIRN_CONFIG": true}
	n := 0
	allSettings().VisitAll(func(f *pflag.Flag) {
		n++
		if v := variable(f.Name); seen[v] || !strings.Contains(f.Usage, "($"+v+")") {
			t.Errorf("--%s: variable %s is taken, or its help %q does not name it", f.Name, v, f.Usage)
		} else {
			seen[v] = true
		}
	})
	if n < 15 {
		t.Errorf("%d settings", n)
	}
}

// FuzzConfig: what is accepted reads the same when it is written again, and every
// flag takes its value.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{"", "[serve]\ndata = '/d'\nlocal-nodes = 9\n[client]\nserver = 'http://h'\n", "serve.host = ['a']\nserve.drain = '1h2m'\n",
		"[serve]\nbehind-proxy = true\nmemory = \"1\\u0047iB\"\n", "[serve]\nlocal-nodes = 0x7fff_ffff\n", "[[serve]]\n", "serve = {data = 'x'}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b)
		if err != nil {
			return
		}
		flags := allSettings()
		for section, keys := range c {
			for key, v := range keys {
				flag := flags.Lookup(key)
				if flag == nil || sectionOf(flag) != section {
					t.Fatalf("%q is accepted with %s in [%s]", b, key, section)
				}
				if err := setFlag(flag, v); err != nil {
					t.Errorf("%q is accepted, and --%s does not take %v: %v", b, key, v, err)
				}
			}
		}
		var again bytes.Buffer
		if err := toml.NewEncoder(&again).Encode(c); err != nil {
			t.Fatal(err)
		}
		if again.Len() > maxConfig {
			return
		}
		if d, err := parseConfig(again.Bytes()); err != nil || !reflect.DeepEqual(c, d) {
			t.Errorf("%q reads %v; written again, %q, it reads %v, %v", b, c, &again, d, err)
		}
	})
}
