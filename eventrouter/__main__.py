from eventrouter.cli import main

main()
