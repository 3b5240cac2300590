// The command step-ca. Debian's package of smallstep's libraries lacks it.
package main

import (
	"fmt"
	"os"

	"github.com/smallstep/certificates/commands"
	"github.com/urfave/cli"

	// They register the kinds of keys and of CAs that a configuration can name.
	_ "github.com/smallstep/certificates/cas"
	_ "github.com/smallstep/certificates/kms"
)

func main() {
	app := cli.NewApp()
	app.Flags = commands.AppCommand.Flags
	app.Action = commands.AppCommand.Action
	if err := app.Run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
