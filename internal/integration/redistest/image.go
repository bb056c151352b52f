package redistest

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"
)

// builtPrefix starts the names of images built here; the kind and the version of the packages follow.
const builtPrefix = "redispatterns/"

// source says where the image of a kind comes from: a public one, or the packages of a Debian suite.
type source struct {
	public, suite, pkg string
	share              []string // folders of /usr/share that the server needs
}

var sources = map[Kind]source{
	Redis70:  {public: "redis:7.0", suite: "bookworm", pkg: "redis-server"},
	Redis8:   {public: "redis:8", suite: "trixie", pkg: "redis-server"},
	Valkey8:  {public: "valkey/valkey:8", suite: "trixie", pkg: "valkey-server"},
	Postgres: {"postgres:15", "bookworm", "postgresql-15", []string{"postgresql", "zoneinfo"}},
	MariaDB:  {"mariadb:10.11", "bookworm", "mariadb-server", []string{"mysql"}},
}

// image returns the name of a local image with the server: one that is there, or pulled, or built, in this order. A kind
// that is not in the matrix is itself the name of an image (REDIS_IMAGE).
func (d *docker) image(kind Kind) (string, error) {
	return run.images.get(kind, func() (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		defer d.client.Close() //nolint:errcheck // closes idle connections: their goroutines would count as leaked
		src, ok := sources[kind]
		if !ok {
			src.public = string(kind)
		}
		if d.has(ctx, src.public) {
			return src.public, nil
		}
		if built, err := d.built(ctx, kind); err != nil || built != "" {
			return built, err
		}
		pullErr := d.pull(ctx, src.public)
		if pullErr == nil {
			return src.public, nil
		}
		if !ok {
			return "", fmt.Errorf("image %s (REDIS_IMAGE): %w", kind, pullErr)
		}
		built, err := d.build(ctx, kind, src)
		if err != nil {
			return "", fmt.Errorf("no image with %s: pull %s: %w; build it from Debian packages: %w", kind, src.public, pullErr, err)
		}
		return built, nil
	})
}

func (d *docker) has(ctx context.Context, image string) bool {
	_, err := d.client.ImageInspect(ctx, image)
	return err == nil
}

// built finds the image of an earlier run. To have it built again, remove it.
func (d *docker) built(ctx context.Context, kind Kind) (string, error) {
	list, err := d.client.ImageList(ctx, client.ImageListOptions{
		Filters: client.Filters{}.Add("reference", builtPrefix+string(kind)),
	})
	if err != nil {
		return "", fmt.Errorf("list images: %w", err)
	}
	for _, image := range list.Items {
		if len(image.RepoTags) > 0 {
			return image.RepoTags[0], nil
		}
	}
	return "", nil
}

// pull gives the registry 20 seconds to begin to answer, then any time to finish. That the public registry cannot be
// reached is remembered, so that only the first image of a run waits for it.
func (d *docker) pull(ctx context.Context, image string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	progress, err := d.startPull(ctx, cancel, image)
	if err != nil {
		return err
	}
	return errors.Join(progress.Wait(ctx), progress.Close())
}

func (d *docker) startPull(ctx context.Context, cancel func(), image string) (client.ImagePullResponse, error) {
	d.pullMu.Lock()
	defer d.pullMu.Unlock()
	if d.registryErr != nil {
		return nil, d.registryErr
	}
	defer time.AfterFunc(20*time.Second, cancel).Stop()
	progress, err := d.client.ImagePull(ctx, image, client.ImagePullOptions{})
	if err != nil && image != os.Getenv("REDIS_IMAGE") { // which may come from elsewhere, or be misspelt
		d.registryErr = err
	}
	return progress, err
}

// build makes an image of a server package, all it depends on, and a shell, without any registry.
func (d *docker) build(ctx context.Context, kind Kind, src source) (_ string, err error) {
	fmt.Fprintf(os.Stderr, "redistest: building an image of %s from the packages of Debian %s, once\n", kind, src.suite)
	dir, err := os.MkdirTemp("", "redistest-image-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	debs, err := downloadDebs(ctx, dir, d.arch, src.suite, src.pkg, "dash", "coreutils", "sed", "grep", "hostname", "util-linux")
	if err != nil {
		return "", err
	}
	tag := "latest"
	for _, deb := range debs {
		if name, rest, _ := strings.Cut(filepath.Base(deb), "_"); name == src.pkg {
			tag = imageTag(rest)
		}
	}
	// The daemon reads the archive while it is written.
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeRoot(ctx, w, debs, src.share)) }()
	name := builtPrefix + string(kind) + ":" + tag
	out, err := d.client.ImageImport(ctx, client.ImageImportSource{Source: r, SourceName: "-"}, name, client.ImageImportOptions{})
	if err != nil {
		return "", errors.Join(fmt.Errorf("docker import: %w", err), r.CloseWithError(err))
	}
	answer, err := io.ReadAll(out)
	if err = errors.Join(err, out.Close()); err != nil {
		return "", fmt.Errorf("docker import: %w", err)
	}
	if strings.Contains(string(answer), `"error"`) {
		return "", fmt.Errorf("docker import: %s", answer)
	}
	return name, nil
}

// imageTag turns the rest of a package's file name, "5%3a8.0.2-3+deb13u2_amd64.deb", into "8.0.2".
func imageTag(rest string) string {
	version, _, _ := strings.Cut(rest, "_")
	if _, after, ok := strings.Cut(version, "%3a"); ok {
		version = after
	}
	version, _, _ = strings.Cut(version, "-")
	version, _, _ = strings.Cut(version, "+")
	return version
}

// downloadDebs lets apt-get find and check packages of a suite which need not be this machine's: it gets its own state, a
// list of installed packages that is empty (so that every dependency comes along), and the machine's mirror and keys.
func downloadDebs(ctx context.Context, dir, arch, suite string, packages ...string) ([]string, error) {
	mirror, err := debianMirror(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "archives/partial", "parts"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	signed := ""
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	if _, err := os.Stat(keyring); err == nil {
		signed = "[signed-by=" + keyring + "] "
	}
	for name, content := range map[string]string{
		"status": "", "sources.list": "deb " + signed + mirror + " " + suite + " main\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	var options []string
	for _, o := range []string{
		"Dir::State=" + dir, "Dir::State::lists=" + dir + "/lists", "Dir::State::status=" + dir + "/status",
		"Dir::Cache=" + dir, "Dir::Cache::archives=" + dir + "/archives",
		"Dir::Etc::sourcelist=" + dir + "/sources.list", "Dir::Etc::sourceparts=" + dir + "/parts",
		"Dir::Etc::preferences=" + dir + "/none", "Dir::Etc::preferencesparts=" + dir + "/parts",
		"APT::Architecture=" + arch, "APT::Architectures=" + arch, "APT::Sandbox::User=root", "Acquire::Languages=none",
		"APT::Update::Post-Invoke-Success=", "APT::Update::Post-Invoke=", "DPkg::Post-Invoke=",
	} {
		options = append(options, "-o", o)
	}
	install := append([]string{"install", "--yes", "--no-install-recommends", "--download-only"}, packages...)
	for _, args := range [][]string{{"update"}, install} {
		if _, err := output(ctx, "apt-get", append(options, args...)...); err != nil {
			return nil, err
		}
	}
	return filepath.Glob(dir + "/archives/*.deb")
}

// debianMirror is the one this machine is configured to use.
func debianMirror(ctx context.Context) (string, error) {
	list, err := output(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)")
	if err != nil {
		return "", err
	}
	for _, uri := range strings.Fields(list) {
		if strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian") {
			return uri, nil
		}
	}
	return "", errors.New("apt on this machine has no Debian mirror")
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// writeRoot writes the files of the packages as one archive. Debian's packages still mix /lib and /usr/lib, which is one
// folder since the merge of /usr: everything goes below /usr, and symbolic links stand for the old names.
func writeRoot(ctx context.Context, w io.Writer, debs, share []string) error {
	archive := tar.NewWriter(w)
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		h := &tar.Header{Typeflag: tar.TypeSymlink, Name: dir, Linkname: "usr/" + dir, Mode: 0o777}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
	}
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}); err != nil {
		return err
	}
	seen := map[string]bool{} // the daemon refuses a name that comes twice, as folders do
	for _, deb := range debs {
		if err := copyDeb(ctx, archive, deb, share, seen); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	return archive.Close()
}

func copyDeb(ctx context.Context, archive *tar.Writer, deb string, share []string, seen map[string]bool) (err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_, drain := io.Copy(io.Discard, out) // or dpkg-deb would wait for a reader
		err = errors.Join(err, drain, cmd.Wait())
	}()
	files := tar.NewReader(bufio.NewReader(out))
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		slash := strings.HasSuffix(h.Name, "/")
		name := merged(h.Name)
		if name == "." || seen[name] || !isNeeded(name, share) {
			continue
		}
		seen[name] = true
		if h.Typeflag == tar.TypeLink {
			h.Linkname = merged(h.Linkname)
		}
		h.Name = name
		if slash {
			h.Name += "/"
		}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(archive, files); err != nil {
			return err
		}
	}
}

// isNeeded reports whether an image needs a file: what is below /usr/share are mostly documentation and translations.
func isNeeded(name string, share []string) bool {
	rest, ok := strings.CutPrefix(name, "usr/share/")
	if !ok {
		return true
	}
	folder, _, _ := strings.Cut(rest, "/")
	return slices.Contains(share, folder)
}

func merged(name string) string {
	name = path.Clean(strings.TrimPrefix(name, "./"))
	switch first, _, _ := strings.Cut(name, "/"); first {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	}
	return name
}
