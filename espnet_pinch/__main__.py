from espnet_pinch.cli import main_program

main_program()
