package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cairn/datadir"
	"cairn/keys"
)

// minPassphrase is the shortest passphrase that a slot is made for, in bytes: a
// copy of the keyring can be tried offline.
const minPassphrase = 12

// keyFlags adds the flags of commands that look at the keys of a data directory.
func keyFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.String("data", "", "data directory (required)")
	f.String("key-file", "", "key file (default CLUSTER.key in the configuration directory)")
	f.Bool("json", false, "print JSON")
	settings(f, serveSection, "data", "key-file")
	_ = cmd.MarkFlagRequired("data")
}

// unlockFlags adds the flags that name another way to unlock than the key file.
func unlockFlags(cmd *cobra.Command) {
	cmd.Flags().String("passphrase-file", "", "unlock with the passphrase in this file instead (- for standard input)")
	cmd.Flags().String("recovery-code-file", "", "unlock with the recovery code in this file instead (- for standard input)")
	cmd.MarkFlagsMutuallyExclusive("passphrase-file", "recovery-code-file")
	settings(cmd.Flags(), serveSection, "passphrase-file")
}

func newKeys() *cobra.Command {
	c := parent(&cobra.Command{
		Use: "keys", Short: "The ways to unlock a store: list, try, add, remove, back up",
		Long: `A store's roots are wrapped by a master key, and each slot of its keyring wraps that for one way of unlocking: the key
file, the recovery code, passphrases. Every node keeps a copy of the keyring; nothing can be read from it without one of them.

list, check, export and confirm-recovery may run while the store is served. add-passphrase, new-recovery-code and remove-slot
work on a data directory that nothing serves.`,
	})
	sub := func(cmd *cobra.Command, unlock bool) *cobra.Command {
		keyFlags(cmd)
		if unlock {
			unlockFlags(cmd)
		}
		c.AddCommand(cmd)
		return cmd
	}
	sub(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the slots, and where copies of the keyring are", Args: cobra.NoArgs,
		Long:    "List the slots of the newest keyring and the copies of it. No key is asked for, so nothing of this is proved; check does that.",
		Example: "  cairn keys list --data /srv/cairn", RunE: do(runKeysList),
	}, false)
	check := sub(&cobra.Command{
		Use: "check", Short: "Try whether a key file, passphrase or recovery code opens the store", Args: cobra.NoArgs,
		Long: `Open the keyring with what is named, by default the key file, and say what it opens: the test of a backup. Nothing is
changed. With --keyring an exported keyring is tried, and no data directory is needed.

Exit codes: 0 it opens the store, 1 it does not, 3 there is nothing to try.`,
		Example: "  cairn keys check --data /srv/cairn --key-file /media/backup/store.key\n  cairn keys check --data /srv/cairn --recovery-code-file -\n  cairn keys check --keyring store.keyring --key-file store.key",
		RunE:    do(runKeysCheck),
	}, true)
	check.Flags().String("keyring", "", "try an exported keyring instead of a data directory")
	delete(check.Flags().Lookup("data").Annotations, cobra.BashCompOneRequiredFlag)
	sub(&cobra.Command{
		Use: "export FILE|-", Short: "Write a copy of the keyring, for a backup", Args: cobra.ExactArgs(1),
		Long: `Write the newest keyring that opens to a new file. It is wrapped: without a key file, a passphrase or the recovery code it
opens nothing. Put into DIR/keyring it takes the place of copies that are lost on all nodes. The key file itself is backed
up by copying it.`,
		Example: "  cairn keys export --data /srv/cairn store.keyring", RunE: do(runKeysExport),
	}, true)
	add := sub(&cobra.Command{
		Use: "add-passphrase", Short: "Make a passphrase open the store too", Args: cobra.NoArgs,
		Long: fmt.Sprintf(`Give the keyring a slot for a passphrase of at least %d bytes. It is read from a file, from standard input, or asked for
twice on a terminal. "cairn serve --passphrase-file" unlocks with it.`, minPassphrase),
		Example: "  cairn keys add-passphrase --data /srv/cairn", RunE: do(runKeysAdd),
	}, true)
	add.Flags().String("new-passphrase-file", "", "file with the new passphrase, without the end of its line (- for standard input; default: ask)")
	sub(&cobra.Command{
		Use: "new-recovery-code", Short: "Make a new recovery code; the one before opens nothing any more", Args: cobra.NoArgs,
		Long: `Give the keyring a slot for a new recovery code, take the slots of those before away, and show the new one. It is shown by
every start, too, until confirm-recovery has been told it. Whoever has the code before and an old copy of the keyring can still
open that copy.`,
		Example: "  cairn keys new-recovery-code --data /srv/cairn", RunE: do(runKeysRecovery),
	}, true)
	remove := sub(&cobra.Command{
		Use: "remove-slot NUMBER", Short: "Make a way to unlock the store be none any more", Args: cobra.ExactArgs(1),
		Long: `Remove a slot that list shows. Whoever has its key and an old copy of the keyring can still open that copy: what somebody
knows is not undone. The last slot stays; and with the key file opening nothing afterwards, --yes is needed.`,
		Example: "  cairn keys remove-slot --data /srv/cairn 3", RunE: do(runKeysRemove),
	}, true)
	remove.Flags().Bool("yes", false, "also when the key file opens nothing afterwards")
	confirm := sub(&cobra.Command{
		Use: "confirm-recovery", Short: "Prove that the recovery code is written down; it is not shown again", Args: cobra.NoArgs,
		Long: `Every start shows the recovery code until this has been told it. The code is read from a file, from standard input, or asked
for on a terminal; when it opens the newest keyring, the file beside the key file that holds it is removed.`,
		Example: "  cairn keys confirm-recovery --data /srv/cairn", RunE: do(runConfirmRecovery),
	}, false)
	confirm.Flags().String("recovery-code-file", "", "file with the code (- for standard input; default: ask)")
	return c
}

// lookAtKeys reads the keyrings of the data directory that --data names.
func lookAtKeys(cmd *cobra.Command) (*datadir.KeyCopies, error) {
	o := datadir.Options{}
	o.Dir, _ = cmd.Flags().GetString("data")
	o.KeyFile, _ = cmd.Flags().GetString("key-file")
	var err error
	if o.Config, err = configDir(); err != nil && o.KeyFile == "" {
		return nil, err
	}
	k, err := datadir.LookAtKeys(o)
	if err != nil {
		return nil, &exitError{exitNoReach, err}
	}
	return k, nil
}

// unlockWith is what the flags name to unlock with; nil: the key file.
func unlockWith(cmd *cobra.Command) (keys.Provider, error) {
	code, err := readCode(cmd)
	if err != nil {
		return nil, &exitError{exitNoReach, err}
	}
	if code != "" {
		c, err := keys.ParseRecoveryCode(code)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	name, _ := cmd.Flags().GetString("passphrase-file")
	if name == "" {
		return nil, nil
	}
	b, err := readPassphrase(cmd, name)
	if err != nil {
		return nil, &exitError{exitNoReach, err}
	}
	return keys.NewPassphrase(b)
}

// readPassphrase reads a file; the end of its line belongs to the file and not to
// the passphrase.
func readPassphrase(cmd *cobra.Command, name string) ([]byte, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read the passphrase: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, 4097))
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	if len(b) > 4096 {
		return nil, errors.New("a passphrase has at most 4096 bytes")
	}
	return bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r")), nil
}

// ask reads a line from the terminal without showing it.
func ask(cmd *cobra.Command, question, flag string) ([]byte, error) {
	f, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, &exitError{exitUsage, fmt.Errorf("there is no terminal to ask on: say %s FILE, or %s - for standard input", flag, flag)}
	}
	fmt.Fprint(cmd.ErrOrStderr(), question)
	defer fmt.Fprintln(cmd.ErrOrStderr())
	return term.ReadPassword(int(f.Fd()))
}

type (
	slotInfo struct {
		Number uint32 `json:"number"`
		Kind   string `json:"kind"`
	}
	copyInfo struct {
		Where      string `json:"where"`
		Generation uint64 `json:"generation,omitempty"`
		Error      string `json:"error,omitempty"`
	}
)

func runKeysList(cmd *cobra.Command, _ []string) error {
	k, err := lookAtKeys(cmd)
	if err != nil {
		return err
	}
	out := struct {
		Store      string     `json:"store"`
		Generation uint64     `json:"generation"`
		Slots      []slotInfo `json:"slots"`
		Copies     []copyInfo `json:"copies"`
		KeyFile    string     `json:"key_file"`
		Pending    string     `json:"recovery_code_not_confirmed,omitempty"`
	}{Store: k.Cluster.String(), Slots: []slotInfo{}, Copies: []copyInfo{}, KeyFile: k.KeyFile, Pending: k.RecoveryPending()}
	for _, c := range k.Copies {
		info := copyInfo{Where: "the data directory"}
		if c.Where != "" {
			info.Where = "node " + c.Where
		}
		s, err := keys.Inspect(c.Wrapped)
		if c.Err != nil {
			err = c.Err
		}
		if err != nil {
			info.Error = err.Error()
		} else {
			info.Generation = s.Generation
			if s.Generation > out.Generation {
				out.Generation, out.Slots = s.Generation, []slotInfo{}
				for _, slot := range s.Slots {
					out.Slots = append(out.Slots, slotInfo{slot.Number, slot.Kind.String()})
				}
			}
		}
		out.Copies = append(out.Copies, info)
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, out)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SLOT\tOPENED BY")
	for _, s := range out.Slots {
		fmt.Fprintf(w, "%d\t%s\n", s.Number, s.Kind)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	same := 0
	for _, c := range out.Copies {
		switch {
		case c.Error != "":
			fmt.Fprintf(cmd.OutOrStdout(), "%s: no copy: %s\n", printable(c.Where), printable(c.Error))
		case c.Generation < out.Generation:
			fmt.Fprintf(cmd.OutOrStdout(), "%s: generation %d; the next start brings it up\n", printable(c.Where), c.Generation)
		default:
			same++
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "generation %d of store %s, in %d of %d places\n", out.Generation, out.Store, same, len(out.Copies))
	if out.Pending != "" {
		fmt.Fprintln(cmd.OutOrStdout(), "the recovery code is not confirmed: every start shows it until `cairn keys confirm-recovery --data DIR`")
	}
	return nil
}

func runKeysCheck(cmd *cobra.Command, _ []string) error {
	var open func(context.Context, keys.Provider) (*keys.Keyring, error)
	keyFile, _ := cmd.Flags().GetString("key-file")
	if name, _ := cmd.Flags().GetString("keyring"); name != "" {
		f, err := os.Open(name)
		if err != nil {
			return &exitError{exitNoReach, err}
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, keys.MaxSize+1))
		if err != nil {
			return &exitError{exitNoReach, err}
		}
		s, err := keys.Inspect(b)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if keyFile == "" {
			if dir, err := configDir(); err == nil {
				keyFile = filepath.Join(dir, s.Cluster.String()+".key")
			}
		}
		open = func(ctx context.Context, p keys.Provider) (*keys.Keyring, error) {
			return keys.Open(ctx, s.Cluster, b, p)
		}
	} else {
		if data, _ := cmd.Flags().GetString("data"); data == "" {
			return &exitError{exitUsage, errors.New("say --data DIR, or --keyring FILE")}
		}
		k, err := lookAtKeys(cmd)
		if err != nil {
			return err
		}
		keyFile, open = k.KeyFile, k.Open
	}
	p, err := unlockWith(cmd)
	if err != nil {
		return err
	}
	what := ""
	if p == nil {
		file, err := keys.ReadKeyFile(keyFile)
		if errors.Is(err, keys.ErrNoKey) {
			return &exitError{exitNoReach, err}
		}
		if err != nil {
			return err
		}
		if warning := file.Warning(); warning != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+warning.Error())
		}
		p, what = file, " "+keyFile
	}
	ring, err := open(cmd.Context(), p)
	if err != nil {
		return fmt.Errorf("the %v%s does not open the store: %w", p.Kind(), what, err)
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"store": ring.Cluster().String(), "generation": ring.Generation(), "opened_by": p.Kind().String()})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "the %v%s opens store %v, generation %d of its keyring\n", p.Kind(), printable(what), ring.Cluster(), ring.Generation())
	return err
}

func runKeysExport(cmd *cobra.Command, args []string) error {
	k, err := lookAtKeys(cmd)
	if err != nil {
		return err
	}
	p, err := unlockWith(cmd)
	if err != nil {
		return err
	}
	if p == nil {
		file, err := keys.ReadKeyFile(k.KeyFile)
		if err != nil {
			return &exitError{exitNoReach, err}
		}
		p = file
	}
	ring, err := k.Open(cmd.Context(), p)
	if err != nil {
		return err
	}
	if args[0] == "-" {
		_, err := cmd.OutOrStdout().Write(ring.Marshal())
		return err
	}
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(ring.Marshal())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(args[0]))
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"file": args[0], "generation": ring.Generation()})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote generation %d of the keyring to %s\n", ring.Generation(), printable(args[0]))
	return err
}

// openForKeys opens a data directory whose keyring is to be changed.
func openForKeys(cmd *cobra.Command) (*datadir.Dir, error) {
	config, err := configDir()
	if err != nil {
		return nil, err
	}
	o := datadir.Options{Config: config, Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	o.Dir, _ = cmd.Flags().GetString("data")
	o.KeyFile, _ = cmd.Flags().GetString("key-file")
	if o.Unlock, err = unlockWith(cmd); err != nil {
		return nil, err
	}
	dir, err := datadir.Open(cmd.Context(), o)
	if err != nil {
		return nil, &exitError{exitNoReach, err}
	}
	return dir, nil
}

func runKeysAdd(cmd *cobra.Command, _ []string) error {
	name, _ := cmd.Flags().GetString("new-passphrase-file")
	var text []byte
	var err error
	if name != "" {
		text, err = readPassphrase(cmd, name)
	} else {
		if text, err = ask(cmd, "New passphrase: ", "--new-passphrase-file"); err != nil {
			return err
		}
		var again []byte
		if again, err = ask(cmd, "Once more: ", "--new-passphrase-file"); err == nil && !bytes.Equal(text, again) {
			err = errors.New("the two differ; nothing was changed")
		}
	}
	if err != nil {
		return err
	}
	if len(text) < minPassphrase {
		return &exitError{exitUsage, fmt.Errorf("a passphrase of %d bytes; at least %d are wanted, for a copy of the keyring can be tried offline", len(text), minPassphrase)}
	}
	p, err := keys.NewPassphrase(text)
	if err != nil {
		return err
	}
	dir, err := openForKeys(cmd)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.ChangeKeyring(cmd.Context(), func(k *keys.Keyring) (*keys.Keyring, error) { return k.AddSlot(cmd.Context(), p) }); err != nil {
		return err
	}
	slots := dir.Keyring.Slots()
	slot := slots[len(slots)-1]
	if err := dir.Close(); err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, slotInfo{slot.Number, slot.Kind.String()})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "slot %d: the passphrase opens the store\n", slot.Number)
	return err
}

func runKeysRecovery(cmd *cobra.Command, _ []string) error {
	dir, err := openForKeys(cmd)
	if err != nil {
		return err
	}
	defer dir.Close()
	code, err := dir.ReplaceRecovery(cmd.Context())
	if err != nil {
		return err
	}
	if err := dir.Close(); err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"store": dir.Cluster, "recovery_code": code})
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), showCode(code))
	return err
}

func runKeysRemove(cmd *cobra.Command, args []string) error {
	number, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("%q is not the number of a slot", args[0])}
	}
	k, err := lookAtKeys(cmd)
	if err != nil {
		return err
	}
	dir, err := openForKeys(cmd)
	if err != nil {
		return err
	}
	defer dir.Close()
	yes, _ := cmd.Flags().GetBool("yes")
	if err := dir.ChangeKeyring(cmd.Context(), func(ring *keys.Keyring) (*keys.Keyring, error) {
		next, err := ring.RemoveSlot(uint32(number))
		if err != nil || yes {
			return next, err
		}
		file, err := keys.ReadKeyFile(k.KeyFile)
		if err == nil {
			_, err = keys.Open(cmd.Context(), k.Cluster, next.Marshal(), file)
		}
		if err != nil {
			return nil, fmt.Errorf("without slot %d the key file %s opens nothing, and starts would need another key: %w; if that is meant, say --yes", number, k.KeyFile, err)
		}
		return next, nil
	}); err != nil {
		return err
	}
	if err := dir.Close(); err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"removed": number})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "slot %d is removed\n", number)
	return err
}

func runConfirmRecovery(cmd *cobra.Command, _ []string) error {
	k, err := lookAtKeys(cmd)
	if err != nil {
		return err
	}
	code, err := readCode(cmd)
	if err != nil {
		return &exitError{exitNoReach, err}
	}
	if code == "" {
		b, err := ask(cmd, "Recovery code: ", "--recovery-code-file")
		if err != nil {
			return err
		}
		code = string(b)
	}
	done, err := k.ConfirmRecovery(cmd.Context(), code)
	if err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"confirmed": true, "before": !done})
	}
	text := "the recovery code is right, and is not shown any more"
	if !done {
		text = "the recovery code is right; it had been confirmed before"
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}
