from dpcdsl.cli import main

main()
