package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A setting is a flag that may also come from the environment or from the
// configuration file. Flags that say what one call is to do are none.
const (
	settingMark = "cairn: section of the configuration" // a flag's annotation
	originMark  = "cairn: origin of the value"

	configName = "cairn.toml"
	maxConfig  = 64 << 10 // bytes of a configuration file
)

// Sections of the configuration file.
const (
	serveSection  = "serve"
	clientSection = "client"
)

// settings makes flags that a command has settings of a section.
func settings(f *pflag.FlagSet, section string, names ...string) {
	for _, name := range names {
		flag := f.Lookup(name)
		if flag.Annotations == nil {
			flag.Annotations = map[string][]string{}
		}
		flag.Annotations[settingMark] = []string{section}
		flag.Usage += " ($" + variable(name) + ")"
	}
}

func sectionOf(flag *pflag.Flag) string {
	if s := flag.Annotations[settingMark]; len(s) == 1 {
		return s[0]
	}
	return ""
}

// originOf says where a setting's value is from: flag, environment, file or
// default.
func originOf(flag *pflag.Flag) string {
	if s := flag.Annotations[originMark]; len(s) == 1 {
		return s[0]
	}
	if flag.Changed {
		return "flag"
	}
	return "default"
}

// variable is the environment variable of a flag.
func variable(flag string) string {
	return "CAIRN_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// allSettings holds a flag for each setting there is, of every section.
func allSettings() *pflag.FlagSet {
	all := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	all.SortFlags = false
	for _, cmd := range []*cobra.Command{newServe(), clientFlags(&cobra.Command{})} {
		cmd.Flags().SortFlags = false
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if sectionOf(f) != "" {
				all.AddFlag(f)
			}
		})
	}
	return all
}

// configFile is what a configuration file says: section, key, value.
type configFile map[string]map[string]any

// parseConfig reads a configuration file strictly: a section or key that is not
// known, a value of another type than its flag's, and one that the flag would
// not take, are errors. Values are bool, int64, string or []string.
func parseConfig(b []byte) (configFile, error) {
	if len(b) > maxConfig {
		return nil, fmt.Errorf("it has more than %d bytes", maxConfig)
	}
	if !utf8.Valid(b) {
		return nil, errors.New("it is not UTF-8")
	}
	var raw map[string]any
	if err := toml.Unmarshal(b, &raw); err != nil {
		if e, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := e.Position()
			return nil, fmt.Errorf("line %d, column %d: %w", line, column, err)
		}
		return nil, err
	}
	flags := allSettings()
	known := map[string][]string{}
	flags.VisitAll(func(f *pflag.Flag) { known[sectionOf(f)] = append(known[sectionOf(f)], f.Name) })
	out := configFile{}
	for _, section := range slices.Sorted(maps.Keys(raw)) {
		keys, ok := raw[section].(map[string]any)
		if known[section] == nil {
			// Perhaps a key that stands above its section.
			for s, names := range known {
				if slices.Contains(names, section) {
					return nil, fmt.Errorf("%q belongs under [%s]", section, s)
				}
			}
			return nil, fmt.Errorf("unknown section %q; the nearest there is: [%s]", section, nearest(section, slices.Collect(maps.Keys(known))))
		}
		if !ok {
			return nil, fmt.Errorf("%q is a section: [%s] on a line of its own", section, section)
		}
		out[section] = map[string]any{}
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			if !slices.Contains(known[section], key) {
				return nil, unknownKey(section, key, known)
			}
			v, err := settingValue(flags.Lookup(key), keys[key])
			if err != nil {
				return nil, fmt.Errorf("%s in [%s]: %w", key, section, err)
			}
			out[section][key] = v
		}
	}
	return out, nil
}

func unknownKey(section, key string, known map[string][]string) error {
	for s, names := range known {
		if slices.Contains(names, key) {
			return fmt.Errorf("%q in [%s] belongs under [%s]", key, section, s)
		}
	}
	if newServe().Flags().Lookup(key) != nil || clientFlags(&cobra.Command{}).Flags().Lookup(key) != nil {
		return fmt.Errorf("%q in [%s] is said on the command line only, each time it is meant", key, section)
	}
	return fmt.Errorf("unknown key %q in [%s]; the nearest there is: %s", key, section, nearest(key, known[section]))
}

// settingValue checks a value against its flag.
func settingValue(flag *pflag.Flag, v any) (any, error) {
	wrong := func(want string) error { return fmt.Errorf("the value is no %s", want) }
	switch kind := flag.Value.Type(); kind {
	case "bool":
		if _, ok := v.(bool); !ok {
			return nil, wrong("true or false")
		}
	case "int":
		if _, ok := v.(int64); !ok {
			return nil, wrong("whole number")
		}
	case "stringSlice":
		list, ok := v.([]any)
		if !ok {
			return nil, wrong(`list of texts, such as ["a", "b"]`)
		}
		texts := make([]string, 0, len(list))
		for _, e := range list {
			s, ok := e.(string)
			if !ok {
				return nil, wrong(`list of texts, such as ["a", "b"]`)
			}
			texts = append(texts, s)
		}
		v = texts
	default: // texts, and what is written as one: durations
		if _, ok := v.(string); !ok {
			return nil, wrong("text in quotes")
		}
	}
	if err := setFlag(flag, v); err != nil {
		return nil, fmt.Errorf("the value is not possible: %w", err)
	}
	return v, nil
}

// setFlag gives a flag a value of the kind that settingValue returns.
func setFlag(flag *pflag.Flag, v any) error {
	switch v := v.(type) {
	case []string:
		return flag.Value.(pflag.SliceValue).Replace(v)
	case bool:
		return flag.Value.Set(strconv.FormatBool(v))
	case int64:
		return flag.Value.Set(strconv.FormatInt(v, 10))
	}
	return flag.Value.Set(v.(string))
}

// nearest is the candidate with the fewest changes from word.
func nearest(word string, candidates []string) string {
	slices.Sort(candidates)
	return slices.MinFunc(candidates, func(a, b string) int { return cmp.Compare(distance(word, a), distance(word, b)) })
}

// distance counts the bytes to insert, remove or exchange. It looks at the
// beginning of long words only.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// configPath is the file that a command reads; named: somebody said so, and it
// must be there.
func configPath(cmd *cobra.Command) (path string, named bool, err error) {
	if path, _ = cmd.Flags().GetString("config"); path != "" {
		return path, true, nil
	}
	if path = os.Getenv("CAIRN_CONFIG"); path != "" {
		return path, true, nil
	}
	dir, err := configDir()
	if err != nil {
		return "", false, nil // commands that need the directory say so themselves
	}
	return filepath.Join(dir, configName), false, nil
}

// readConfigFile reads and checks the file of a command; there is false when
// nobody named one and the usual one is not there.
func readConfigFile(cmd *cobra.Command) (c configFile, path string, there bool, err error) {
	path, named, err := configPath(cmd)
	if err != nil || path == "" {
		return nil, path, false, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, path, false, nil
	}
	if err != nil {
		return nil, path, false, fmt.Errorf("read the configuration file: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o002 != 0 {
		return nil, path, false, fmt.Errorf("the configuration file %s can be changed by everybody: chmod o-w it", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, path, false, fmt.Errorf("read the configuration file: %w", err)
	}
	if c, err = parseConfig(bytes.TrimPrefix(b, []byte("\ufeff"))); err != nil {
		return nil, path, false, fmt.Errorf("the configuration file %s: %w", path, err)
	}
	return c, path, true, nil
}

// configure gives the settings of a command that no flag named the values of the
// environment or the configuration file, in that order. A variable without text
// counts as none.
func configure(cmd *cobra.Command) error {
	var flags []*pflag.Flag
	// A key that the command line names to unlock with outweighs a passphrase that it
	// does not name.
	named := cmd.Flags().Changed("key-file") || cmd.Flags().Changed("recovery-code-file")
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if sectionOf(f) != "" && !f.Changed && (f.Name != "passphrase-file" || !named) {
			flags = append(flags, f)
		}
	})
	if len(flags) == 0 {
		return nil
	}
	file, path, _, err := readConfigFile(cmd)
	if err != nil {
		return err
	}
	for _, f := range flags {
		origin := ""
		if text := os.Getenv(variable(f.Name)); text != "" {
			if err := f.Value.Set(text); err != nil {
				return fmt.Errorf("%s in the environment is not possible for --%s: %w", variable(f.Name), f.Name, err)
			}
			origin = "environment " + variable(f.Name)
		} else if v, ok := file[sectionOf(f)][f.Name]; ok {
			if err := setFlag(f, v); err != nil {
				return fmt.Errorf("%s in %s: %w", f.Name, path, err)
			}
			origin = "file " + path
		} else {
			continue
		}
		f.Changed = true
		f.Annotations[originMark] = []string{origin}
	}
	return nil
}

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Print the configuration in effect, and where each value is from", Args: cobra.NoArgs,
		Long: `Print every setting of the server and of the commands that talk to one, with its value and its origin: a flag (of this
command, which takes them all), a CAIRN_ variable of the environment, the configuration file, or the default. The first of
these that says something wins.

The file is ` + configName + ` in the configuration directory ($XDG_CONFIG_HOME/cairn), or what --config or CAIRN_CONFIG names.
It is TOML with the names of flags under [serve] and [client]:

  [serve]
  data = "/srv/cairn"
  listen = "localhost:5000"
  memory = "1GiB"
  host = ["store.example"]

  [client]
  server = "https://store.example:5000"
  ca-cert = "/etc/ssl/store.pem"

data, key-file, passphrase-file and memory of [serve] hold for the commands on a data directory too. A key that is not known is refused by every
command. Secrets are never in it, and never printed here.`,
		Example: "  cairn config\n  cairn config --json\n  CAIRN_MEMORY=1GiB cairn config --listen :5000 --tls-cert cert.pem --tls-key key.pem",
		RunE:    do(runConfig),
	}
	all := allSettings()
	all.VisitAll(func(f *pflag.Flag) { delete(f.Annotations, cobra.BashCompOneRequiredFlag) })
	cmd.Flags().AddFlagSet(all)
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// hideURL leaves of a URL what names its server: the rest may be a secret.
func hideURL(text string) string {
	if text == "" {
		return ""
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return "(not shown)"
	}
	return u.Scheme + "://" + u.Host + "/..."
}

type settingInfo struct {
	Section string `json:"section"`
	Name    string `json:"name"`
	Value   any    `json:"value"`
	Origin  string `json:"origin"`
}

func runConfig(cmd *cobra.Command, _ []string) error {
	_, path, there, err := readConfigFile(cmd)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	out := struct {
		File     string        `json:"file"`
		There    bool          `json:"file_is_there"`
		Settings []settingInfo `json:"settings"`
		Token    string        `json:"token_from"`
		Notes    []string      `json:"notes"`
	}{File: path, There: there, Settings: []settingInfo{}, Notes: []string{}}
	known := []string{"CAIRN_CONFIG", "CAIRN_TOKEN"}
	allSettings().VisitAll(func(f *pflag.Flag) {
		known = append(known, variable(f.Name))
		f = cmd.Flags().Lookup(f.Name)
		var v any = f.Value.String()
		switch f.Value.Type() {
		case "bool":
			v, _ = cmd.Flags().GetBool(f.Name)
		case "int":
			v, _ = cmd.Flags().GetInt(f.Name)
		case "stringSlice":
			v = f.Value.(pflag.SliceValue).GetSlice()
		}
		if f.Name == "notify-url" {
			v = hideURL(f.Value.String())
		}
		if f.Name == "losses" && v == 0 {
			v = "2 with five or more nodes, else 1"
		}
		out.Settings = append(out.Settings, settingInfo{sectionOf(f), f.Name, v, originOf(f)})
	})
	for _, e := range os.Environ() {
		name, text, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "CAIRN_") && text != "" && !slices.Contains(known, name) {
			out.Notes = append(out.Notes, fmt.Sprintf("%s in the environment means nothing; the nearest there is: %s", name, nearest(name, known)))
		}
	}
	slices.Sort(out.Notes)
	if server, err := serverURL(cmd); err != nil {
		out.Token = err.Error()
	} else if _, out.Token, err = findToken(cmd, server); err != nil {
		out.Token = "none: " + err.Error()
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, out)
	}
	state := "not there"
	if there {
		state = "read"
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintf(cmd.OutOrStdout(), "configuration file %s: %s\n", printable(path), state)
	fmt.Fprintln(w, "SETTING\tVALUE\tORIGIN")
	for _, s := range out.Settings {
		text := fmt.Sprintf("%v", s.Value)
		if list, ok := s.Value.([]string); ok {
			text = strings.Join(list, ",")
		}
		fmt.Fprintf(w, "%s.%s\t%s\t%s\n", s.Section, s.Name, printable(cmp.Or(text, "-")), printable(s.Origin))
	}
	fmt.Fprintf(w, "token\t(not shown)\t%s\n", printable(out.Token))
	for _, n := range out.Notes {
		fmt.Fprintln(w, "note: "+printable(n))
	}
	return w.Flush()
}
