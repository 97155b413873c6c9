"""`python -m exastore.deploy` is the `exastore` command."""

from exastore.deploy.cli import main

if __name__ == "__main__":
    main()
