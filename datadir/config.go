package datadir

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"cairn/id"
)

// Files of the configuration directory that several stores share.
const (
	tokenName   = "token"
	storesName  = "stores.json"
	serversName = "servers.json"
)

func (d *Dir) tokenFile() string { return tokenFile(d.opt.Config, d.Cluster) }

func tokenFile(config string, cluster id.Cluster) string {
	return filepath.Join(config, cluster.String()+".token")
}

// formToken makes the admin token, unless there is one.
func (d *Dir) formToken() error {
	if b, err := os.ReadFile(d.tokenFile()); err == nil && len(strings.TrimSpace(string(b))) >= 32 {
		d.Token = strings.TrimSpace(string(b))
		return d.publishToken()
	}
	if d.Fresh == nil {
		d.opt.Log.Warn("the admin token is not there; a new one is made", "file", d.tokenFile())
	}
	var raw [32]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return err
	}
	d.Token = base64.RawURLEncoding.EncodeToString(raw[:])
	if err := writeDurably(d.opt.Config, d.Cluster.String()+".token", []byte(d.Token+"\n")); err != nil {
		return fmt.Errorf("write the admin token: %w", err)
	}
	return d.publishToken()
}

// publishToken puts the token where clients on this machine look first, unless
// the token of another store that is still there is in that place: its clients
// must go on finding it.
func (d *Dir) publishToken() error {
	b, err := os.ReadFile(filepath.Join(d.opt.Config, tokenName))
	if err == nil && strings.TrimSpace(string(b)) == d.Token {
		return nil
	}
	if err == nil {
		known, err := d.knownStores()
		if err != nil {
			return err
		}
		for dir, cluster := range known {
			other, err := os.ReadFile(tokenFile(d.opt.Config, cluster))
			if err == nil && cluster != d.Cluster && string(other) == string(b) && holds(dir, cluster) {
				d.opt.Log.Info("commands that name no server go on using the token of another store", "store", cluster, "in", dir, "token of this one", d.tokenFile())
				return nil
			}
		}
	}
	return writeDurably(d.opt.Config, tokenName, []byte(d.Token+"\n"))
}

// holds reports whether a directory holds that store now.
func holds(dir string, cluster id.Cluster) bool {
	var m marker
	b, err := os.ReadFile(filepath.Join(dir, markerName))
	if err == nil && json.Unmarshal(b, &m) == nil {
		return m.Cluster == cluster
	}
	other := &Dir{opt: Options{Dir: dir}}
	m, ok, err := other.identifyByNodes()
	return err == nil && ok && m.Cluster == cluster
}

// readConfig reads one of the JSON files of the configuration directory.
func readConfig(config, name string) (map[string]id.Cluster, error) {
	out := map[string]id.Cluster{}
	b, err := os.ReadFile(filepath.Join(config, name))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("%s in %s cannot be read: %w", name, config, err)
	}
	return out, nil
}

// changeConfig changes one of these files; of several starts one at a time does.
func (d *Dir) changeConfig(name string, change func(map[string]id.Cluster) (changed bool)) error {
	lock, err := os.Open(d.opt.Config)
	if err != nil {
		return err
	}
	defer lock.Close() // and with it goes the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", d.opt.Config, err)
	}
	m, err := readConfig(d.opt.Config, name)
	if err != nil || !change(m) {
		return err
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(d.opt.Config, name, append(b, '\n'))
}

// knownStores reads CONFIG/stores.json: data directory to cluster ID.
func (d *Dir) knownStores() (map[string]id.Cluster, error) {
	return readConfig(d.opt.Config, storesName)
}

func (d *Dir) knownStore() (id.Cluster, error) {
	known, err := d.knownStores()
	return known[d.opt.Dir], err
}

func (d *Dir) rememberStore() error {
	return d.changeConfig(storesName, func(known map[string]id.Cluster) bool {
		changed := known[d.opt.Dir] != d.Cluster
		known[d.opt.Dir] = d.Cluster
		return changed
	})
}

// RememberServer notes the addresses that the store is served at, so that clients
// of this user find its token. They are not asked which store they are: whatever
// answers at an address could say so.
func (d *Dir) RememberServer(addrs ...net.Addr) error {
	return d.changeConfig(serversName, func(served map[string]id.Cluster) bool {
		ours, changed := map[string]bool{}, false
		for _, a := range addrs {
			ours[a.String()] = true
			changed = changed || served[a.String()] != d.Cluster
			served[a.String()] = d.Cluster
		}
		for addr, cluster := range served {
			if cluster == d.Cluster && !ours[addr] {
				delete(served, addr)
				changed = true
			}
		}
		return changed
	})
}

// TokenFile is the file with the token for a server on this machine: of the store
// that this user last served at that address, else that of the first store.
func TokenFile(config, host, port string) (string, error) {
	served, err := readConfig(config, serversName)
	if err != nil {
		return "", err
	}
	hosts := []string{host}
	if host == "localhost" {
		hosts = []string{"127.0.0.1", "::1"}
	}
	for _, h := range append(hosts, "0.0.0.0", "::") { // a server may listen on every address
		if cluster, ok := served[net.JoinHostPort(h, port)]; ok {
			return tokenFile(config, cluster), nil
		}
	}
	return filepath.Join(config, tokenName), nil
}
