"""`python -m purelb_sm` is the `purelb` command."""

from purelb_sm.cli.main import main

if __name__ == "__main__":
    main()
